"""The makings of a command: plain typer apps without rich, and the options that several commands share.

Owns: what all commands and groups look like. Knows none of them.
"""

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Config file; by default $KVSD_CONFIG, ./config.yaml, or kvsd/config.yaml in the XDG config folder.",
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, and errors as JSON.")]

_CONTEXT: Final = {"help_option_names": ["-h", "--help"]}


def new_command() -> typer.Typer:
    """The app of one command."""
    # Not rich's help: importing rich takes as long as a whole request.
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_CONTEXT)


def new_group(text: str) -> typer.Typer:
    """The app of a group of commands, described by `text`; without a command it shows its help."""
    app = new_command()
    app.callback(help=text, invoke_without_command=True)(show_help)
    return app


def show_help(context: typer.Context) -> None:
    """Print the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
