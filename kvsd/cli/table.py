"""`kvsd table …`: make, list, set up, drop and reopen tables."""

from typing import TYPE_CHECKING, Annotated

import typer

from kvsd.cli import prompt
from kvsd.cli.app import new_group
from kvsd.cli.client import ClientOptions, changing_command, client_command
from kvsd.cli.failures import UsageError
from kvsd.cli.names import TableArgument, parted
from kvsd.cli.output import Json, as_configured, on_terminal, print_table

if TYPE_CHECKING:
    from kvsd.client.administration import TableSettings

app = new_group("Make, list, set up, drop and reopen tables.")

_Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTING=VALUE]...",
        help="fsync, fsync_interval_ms, cache_bytes, segment_bytes, compaction, compaction_bytes_per_second, "
        "compaction_garbage_ratio; the value default goes back to the server's.",
    ),
]


@app.command("create")
@changing_command
def create(options: ClientOptions, name: TableArgument, settings: _Settings = None) -> None:
    """Make TABLE, whose namespace must exist.

    \b
    Examples:
      kvsd table create sessions
      kvsd table create shop/stock fsync=interval
    """
    namespace, table = parted(name)
    given = _changes(settings)
    with options.connect() as client:
        client.tables.create(table, namespace=namespace, **given)
    options.output.done()


@app.command("list")
@client_command
def list_(
    options: ClientOptions,
    within: Annotated[str | None, typer.Argument(metavar="[NAMESPACE]", help="Of this namespace only.")] = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="Dropped tables whose files are still there.")] = False,
) -> None:
    """List the tables: name, state, and the settings that are their own.

    A pipe gets a line for each table, with tabs in between.

    \b
    Examples:
      kvsd table list
      kvsd table list --dropped
    """
    with options.connect() as client:
        if dropped:
            rows: list[dict[str, Json]] = [
                {
                    "table": f"{row.namespace}/{row.table}",
                    "dropped_at": row.dropped_at.isoformat(),
                    "folder": row.folder,
                }
                for row in client.tables.dropped(within)
            ]
        else:
            rows = [
                {"table": f"{row.namespace}/{row.table}", "state": row.state, "settings": dict(row.settings)}
                for row in client.tables.list(within)
            ]
    if options.json:
        for row in rows:
            options.output.document(row)
        return
    lines = [[_shown(value) for value in row.values()] for row in rows]
    if on_terminal():
        print_table(["table", "dropped", "folder"] if dropped else ["table", "state", "settings"], lines)
        return
    for line in lines:
        options.output.line(*line)


@app.command("info")
@client_command
def info(options: ClientOptions, name: TableArgument) -> None:
    """Print what there is to know of TABLE, which is opened for it.

    \b
    Examples:
      kvsd table info default
    """
    namespace, table = parted(name)
    with options.connect() as client:
        found = client.tables.info(table, namespace=namespace)
    place = f"{found.namespace}/{found.table}"
    if options.json:
        status: Json = None if found.status is None else dict(found.status)
        error: Json = None if found.error is None else {"code": found.error.code, "message": str(found.error)}
        facts: dict[str, Json] = {"table": place, "state": found.state}
        options.output.document({**facts, **_both(found.settings), "status": status, "error": error})
        return
    # The state is among the figures of the status, too.
    options.output.figures({"table": place, "state": found.state, **found.settings.effective, **(found.status or {})})
    if found.error is not None:
        options.output.warning(str(found.error))


@app.command("settings")
@changing_command
def settings_(options: ClientOptions, name: TableArgument, settings: _Settings = None) -> None:
    """Print the settings of TABLE, or change them.

    They hold at once, also for a table that is in use.

    \b
    Examples:
      kvsd table settings sessions
      kvsd table settings sessions fsync=interval cache_bytes=1MiB
      kvsd table settings sessions fsync=default
    """
    namespace, table = parted(name)
    changes = _changes(settings)
    with options.connect() as client:
        found = client.tables.settings(table, namespace=namespace, **changes)
    if options.json:
        options.output.document(_both(found))
        return
    options.output.figures(
        {
            name: f"{as_configured(value)}{'' if name in found.own else '  (of the server)'}"
            for name, value in found.effective.items()
        },
    )


@app.command("drop")
@changing_command
def drop(
    options: ClientOptions,
    name: TableArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Drop TABLE. Its files are kept for a week (kvsd.dropped_keep_seconds), then they are gone.

    \b
    Examples:
      kvsd table drop sessions --yes
    """
    namespace, table = parted(name)
    if not yes and not prompt.confirm(f"Drop the table {name} with all its keys?"):
        raise UsageError(f"nothing was dropped; add --yes to drop {name} without being asked")
    with options.connect() as client:
        client.tables.drop(table, namespace=namespace)
    options.output.done()
    options.output.note("the server keeps its files for a while; `kvsd table list --dropped` shows where")


@app.command("reopen")
@changing_command
def reopen(options: ClientOptions, name: TableArgument) -> None:
    """Recover TABLE anew, as a restart would.

    Brings back one that a failed disk has made read-only.

    \b
    Examples:
      kvsd table reopen default
    """
    namespace, table = parted(name)
    with options.connect() as client:
        client.tables.reopen(table, namespace=namespace)
    options.output.done()


def _changes(words: list[str] | None) -> dict[str, str]:
    """What SETTING=VALUE words say; raises UsageError."""
    changes: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals or name in changes:
            raise UsageError(f"{word!r} is no SETTING=VALUE that stands there once")
        changes[name] = value
    return changes


def _both(settings: "TableSettings") -> dict[str, Json]:
    return {"settings": dict(settings.own), "effective": dict(settings.effective)}


def _shown(value: Json) -> str:
    if not isinstance(value, dict):
        return str(value)
    return " ".join(f"{name}={as_configured(part)}" for name, part in value.items())
