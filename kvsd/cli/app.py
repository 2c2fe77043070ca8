"""The makings of a command: plain typer apps without rich, and the options that several commands share.

Owns: what all commands and groups look like, and that options may come before the command. Knows none of them.
"""

from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer
from typer.core import TyperGroup, TyperOption

from kvsd.cli.failures import UsageError

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

_UNCUT: Final = 10_000
"""A width that no summary of a command reaches."""

_MEANT: Final = {
    **dict.fromkeys(("rm", "remove", "del", "delete", "unset", "erase"), ("delete", "drop")),
    **dict.fromkeys(("put", "store", "write", "save"), ("set",)),
    **dict.fromkeys(("fetch", "read", "cat", "load"), ("get",)),
    **dict.fromkeys(("ls", "list", "find"), ("list", "keys")),
    **dict.fromkeys(("show", "describe", "stat"), ("info", "show", "entry")),
    **dict.fromkeys(("dump", "export"), ("scan",)),
    **dict.fromkeys(("start", "run", "daemon"), ("serve",)),
    **dict.fromkeys(("status", "health"), ("ping", "info")),
    **dict.fromkeys(("create", "new", "add", "make"), ("create", "init", "table")),
}
"""Words that other programs have for a command, and what it may be here."""


class CommandGroup(TyperGroup):
    """A group that hands options before a command's name on to the command; its help cuts no summary off."""

    # The bases' parameters are classes without public names, and every context here is typer's own.
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, _command_first(args, {*ctx.help_option_names, *options_of(self)}))

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name not in self.commands:
            raise no_command(cmd_name, self.commands, ctx.command_path)
        return self.commands[cmd_name]

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        self.format_family(ctx, formatter, "Commands", self.list_commands(ctx))

    def format_family(self, ctx: typer.Context, formatter: Any, title: str, names: Iterable[str]) -> None:
        """The summaries of some commands. Any: the class of typer's formatter has no public name."""
        with formatter.section(title):
            commands = [(name, self.get_command(ctx, name)) for name in names]
            formatter.write_dl([(name, command.get_short_help_str(_UNCUT)) for name, command in commands if command])


def new_command() -> typer.Typer:
    """The app of one command."""
    # Not rich's help: importing rich takes as long as a whole request.
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_CONTEXT)


def new_group(text: str) -> typer.Typer:
    """The app of a group of commands, described by `text`; without a command it shows its help."""
    app = new_command()
    app.callback(cls=CommandGroup, help=text, invoke_without_command=True)(show_help)
    return app


def no_command(name: str, names: Collection[str], group: str) -> UsageError:
    """The error for a command that `group` does not have, with the one that was probably meant."""
    # Imported here: needed for mistakes only.
    from difflib import get_close_matches

    meant = [other for other in _MEANT.get(name, ()) if other in names]
    begun = [other for other in names if len(name) > 1 and other.startswith(name)]
    nearest = meant or begun or get_close_matches(name, names, n=1)
    suggestion = f", did you mean {nearest[0]!r}?" if nearest else ""
    return UsageError(f"there is no command {name!r}{suggestion}; `{group} --help` lists all")


def options_of(command: Any) -> dict[str, bool]:
    """The options of a command by name, and whether an argument follows. Any: typer's class has no public name."""
    options = [option for option in command.params if isinstance(option, TyperOption)]
    return {name: not option.is_flag for option in options for name in option.opts}


def show_help(context: typer.Context) -> None:
    """Print the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _command_first(words: list[str], own: set[str]) -> list[str]:
    """`words` with the options that every client command takes behind the command's name, where it looks for them."""
    if not words or not words[0].startswith("-") or words[0] in own:
        return words
    # Imported here: most commands are called by their name first.
    from kvsd.cli.client import shared_options

    shared = shared_options()
    rest = iter(words)
    options: list[str] = []
    for word in rest:
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            return [word, *options, *rest]
        if name in own:
            return [word, *rest]
        if name not in shared:
            return words  # a misspelt one, which typer refuses
        options.append(word)
        if shared[name] and not equals:
            options += islice(rest, 1)
    raise UsageError("there is no command behind the options; `kvsd --help` lists all")
