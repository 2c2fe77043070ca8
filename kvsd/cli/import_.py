"""`kvsd import`: take over another program's data."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, changing_command
from kvsd.cli.failures import CommandFailed
from kvsd.cli.output import path_text, shown_progress

if TYPE_CHECKING:
    from rich.console import Console

    from kvsd.client.settings import ConnectSettings
    from kvsd.server.kvsd_rs import RustFile
    from kvsd.types import Key, Value

_GROUP_KEYS: Final = 256
_GROUP_BYTES: Final = 8 << 20
"""Sets that are sent at a time, to share round trips and syncs."""

app = new_command()


@app.command("import")
@changing_command
def import_(
    options: ClientOptions,
    from_kvsd_rs: Annotated[
        Path, typer.Option("--from-kvsd-rs", metavar="FILE", help="Data file (*.kvsd) of the Rust program kvsd 0.1.3.")
    ],
    root_dir: Annotated[
        Path | None,
        typer.Option("--root-dir", metavar="DIR", help="Write to this data folder, whose server is not running."),
    ] = None,
) -> None:
    """Import the live keys of another program's file.

    They go into a running server, or offline into a data folder. The whole file is verified first: where an entry is
    damaged, nothing is imported. An interrupted append at its end is reported and left out.
    A key that exists already gets the imported value.

    \b
    Examples:
      kvsd import --from-kvsd-rs default.kvsd
      kvsd import --from-kvsd-rs default.kvsd --root-dir data
    """
    # Imported here: the help needs none of it.
    from kvsd.server.kvsd_rs import RustFile

    with shown_progress() as console, RustFile(from_kvsd_rs) as file:
        items = file if console is None else _tracked(file, console)
        if root_dir is not None:
            imported = _write(root_dir, items)
        else:
            import asyncio

            imported = asyncio.run(_send(options.settings(), items))
        if file.torn_bytes:
            options.output.warning(
                f"{path_text(from_kvsd_rs)} ends with {file.torn_bytes} bytes of an interrupted append, "
                "which were left out"
            )
        if file.unchecked:
            options.output.warning(f"{file.unchecked} entries had no checksum and were taken as they are")
        if options.json:
            options.output.document(
                {
                    "imported": imported,
                    "entries": file.entries,
                    "deletions": file.deletions,
                    "unchecked": file.unchecked,
                    "torn_bytes": file.torn_bytes,
                }
            )
        else:
            options.output.line(f"OK imported keys: {imported}")


def _write(root_dir: Path, items: "Iterable[tuple[Key, Value]]") -> int:
    """Set all `items` in a data folder; how many. CommandFailed where the disk fails."""
    from kvsd.server import offline

    try:
        return offline.write(root_dir, items)
    except OSError as error:
        raise CommandFailed(
            f"cannot import into {root_dir}: {error.strerror}; make room or check the disk, and import again: "
            "what was written so far stays"
        ) from error


async def _send(settings: "ConnectSettings", items: "Iterable[tuple[Key, Value]]") -> int:
    """Set all `items` on a running server; how many. The first error ends it; what was set before stays."""
    import asyncio

    from kvsd.client.aio import Client

    sent = 0
    async with await Client.open(settings) as client:
        for group in _groups(items):
            await asyncio.gather(*(client.set(key, value) for key, value in group))
            sent += len(group)
    return sent


def _groups(items: "Iterable[tuple[Key, Value]]") -> "Iterator[list[tuple[Key, Value]]]":
    group: list[tuple[Key, Value]] = []
    group_bytes = 0
    for key, value in items:
        group.append((key, value))
        group_bytes += len(value)
        if len(group) == _GROUP_KEYS or group_bytes >= _GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group


def _tracked(file: "RustFile", console: "Console") -> "Iterable[tuple[Key, Value]]":
    """The items of `file`, with a bar that shows how far they are."""
    from rich.progress import track

    return track(file, "importing", total=len(file), console=console, transient=True)
