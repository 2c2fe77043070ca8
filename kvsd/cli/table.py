"""`kvsd table …`: make, list, set up and drop tables."""

from collections.abc import Mapping
from typing import Annotated, cast

import typer

from kvsd.cli import prompt
from kvsd.cli.app import new_group
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Json

app = new_group("Make, list, set up and drop tables.")

_Table = Annotated[str, typer.Argument(metavar="TABLE", help="NAMESPACE/TABLE, or TABLE in the default namespace.")]
_Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTING=VALUE]...",
        help="fsync, fsync_interval_ms, cache_bytes, segment_bytes; the value default goes back to the server's.",
    ),
]


@app.command("create")
@client_command
def create(options: ClientOptions, name: _Table, settings: _Settings = None) -> None:
    """Make TABLE, whose namespace must exist.

    \b
    Examples:
      kvsd table create sessions
      kvsd table create shop/stock fsync=interval
    """
    ask(options, "table", "create", name, *(settings or ()))
    options.output.done()


@app.command("list")
@client_command
def list_(
    options: ClientOptions,
    within: Annotated[str | None, typer.Argument(metavar="[NAMESPACE]", help="Of this namespace only.")] = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="Dropped tables whose files are still there.")] = False,
) -> None:
    """List the tables: name, state, and the settings that are their own.

    \b
    Examples:
      kvsd table list
      kvsd table list --dropped
    """
    if dropped and within is not None:
        raise UsageError("--dropped lists those of all namespaces; leave NAMESPACE out")
    words = ["table", "dropped"] if dropped else ["table", "list", *filter(None, [within])]
    rows = ask(options, *words)
    for row in cast("list[dict[str, Json]]", rows):
        if options.json:
            options.output.document(row)
        elif dropped:
            options.output.line(f"{row['table']}\t{row['dropped_at']}\t{row['folder']}")
        else:
            options.output.line(
                f"{row['table']}\t{row['state']}\t{_pairs(cast('Mapping[str, Json]', row['settings']))}"
            )


@app.command("info")
@client_command
def info(options: ClientOptions, name: _Table) -> None:
    """Print what there is to know of TABLE.

    \b
    Examples:
      kvsd table info default
    """
    show(options, ask(options, "table", "info", name))


@app.command("settings")
@client_command
def settings_(options: ClientOptions, name: _Table, settings: _Settings = None) -> None:
    """Print the settings of TABLE, or change them: they hold at once, also for a table that is in use.

    \b
    Examples:
      kvsd table settings sessions
      kvsd table settings sessions fsync=interval cache_bytes=1MiB
      kvsd table settings sessions fsync=default
    """
    show(options, ask(options, "table", "settings", name, *(settings or ())))


@app.command("drop")
@client_command
def drop(
    options: ClientOptions,
    name: _Table,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Drop TABLE. Its files are kept for a week (kvsd.dropped_keep_seconds), then they are gone.

    \b
    Examples:
      kvsd table drop sessions --yes
    """
    if not yes and not prompt.confirm(f"Drop the table {name} with all its keys?"):
        raise UsageError(f"nothing was dropped; add --yes to drop {name} without being asked")
    ask(options, "table", "drop", name)
    options.output.done()


@app.command("reopen")
@client_command
def reopen(options: ClientOptions, name: _Table) -> None:
    """Recover TABLE anew, as a restart would: brings back one that a failed disk has made read-only.

    \b
    Examples:
      kvsd table reopen default
    """
    ask(options, "table", "reopen", name)
    options.output.done()


def ask(options: ClientOptions, *words: str) -> object:
    """The report of one command."""
    with options.connect() as client:
        return client.administer(*words)


def show(options: ClientOptions, report: object) -> None:
    """A table's report: a document, or a line for each figure."""
    document = cast("dict[str, Json]", report)
    if options.json:
        options.output.document(document)
        return
    for what, value in document.items():
        if what == "state" and document["status"]:
            continue  # the status has it
        if isinstance(value, dict) and what != "settings":
            for inner, figure in value.items():
                options.output.line(f"{inner:18} {figure}")
        elif value is not None:
            options.output.line(f"{what:18} {_pairs(value) if isinstance(value, dict) else value}")


def _pairs(settings: Mapping[str, Json]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
