"""`kvsd compact`: have a table's log rewritten without what is no longer wanted, and see how far that is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import CommandFailed, UsageError
from kvsd.cli.names import parted
from kvsd.cli.output import shown_progress

if TYPE_CHECKING:
    from kvsd.client.administration import Action, CompactionProgress

app = new_command()

_POLL_SECONDS: Final = 0.2


@app.command("compact")
@client_command
def compact(
    options: ClientOptions,
    name: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="NAMESPACE/TABLE or TABLE; by default the one in use.")
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Hold a compaction, and let none begin.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let compactions go on.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only tell how far it is.")] = False,
) -> None:
    """Give back the space of what was deleted, replaced or has expired.

    Waits for the end. The table is served meanwhile. An interrupt ends the waiting, not the compaction.

    \b
    Examples:
      kvsd compact
      kvsd compact shop/stock --pause
      kvsd compact shop/stock --resume
    """
    flags: dict[Action, bool] = {"pause": pause, "resume": resume, "status": status}
    asked = [action for action, is_given in flags.items() if is_given]
    if len(asked) > 1:
        raise UsageError("--pause, --resume and --status exclude each other; give one of them")
    namespace, table = (None, None) if name is None else parted(name)
    with options.connect() as client:
        progress = client.tables.compact(table, namespace=namespace, action=asked[0] if asked else "start")
        is_lost = False
        if not asked:
            with _shown() as show_progress:
                while progress.state == "running":
                    show_progress(progress)
                    time.sleep(_POLL_SECONDS)
                    before, progress = progress, client.tables.compact(table, namespace=namespace, action="status")
                    is_lost = progress.segments_total < before.segments_total
    if options.json:
        options.output.document(dict(progress._asdict()))
    else:
        options.output.figures({name: figure for name, figure in progress._asdict().items() if figure != ""})
    if asked:
        return
    if progress.error:
        raise CommandFailed(f"the compaction ended early: {progress.error}")
    if is_lost:
        raise CommandFailed("the table was closed meanwhile, and the compaction given up; start it again")
    if progress.state != "idle":
        raise CommandFailed(f"the compaction is {progress.state}; kvsd compact --resume lets it go on")


@contextmanager
def _shown() -> "Iterator[Callable[[CompactionProgress], None]]":
    """What shows progress: a bar while somebody looks."""
    with shown_progress() as console:
        if console is None:
            yield lambda _: None
            return
        from rich.progress import Progress

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("compacting", total=None)
            yield lambda progress: bar.update(task, completed=progress.bytes_done, total=progress.bytes_total or None)
