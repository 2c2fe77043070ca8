"""The commands by name.

Owns: which there are, in the order of the help, and the step from arguments to the function that runs. Must not
import any of them before it is needed.
"""

from importlib import import_module
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import kvsd
from kvsd.cli.app import CommandGroup, new_command, no_command, show_help
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Output

_FAMILIES: Final = {
    "A server": {name: name for name in ("init", "serve", "ping")},
    "Keys and values": {
        **{name: name for name in ("set", "get", "delete", "entry")},
        **dict.fromkeys(("exists", "getset", "getdel", "append", "incr", "decr"), "updates"),
        **dict.fromkeys(("expire", "ttl", "persist"), "expiry"),
    },
    "Many keys": {
        **dict.fromkeys(("scan", "keys", "count"), "scan"),
        **dict.fromkeys(("mget", "mset", "batch"), "many"),
    },
    "Tables": {name: name for name in ("table", "namespace", "compact")},
    "Setting up": {
        "import": "import_",
        **{name: name for name in ("restored", "sizing", "config", "certs", "passwd", "version")},
    },
}
"""Family → command → module. A module that has several keeps them in `apps`, by name; else it is its `app`."""

_COMMANDS: Final = {name: module for family in _FAMILIES.values() for name, module in family.items()}

_ALIASES: Final = {"server": "serve"}
"""The Rust program's names."""

_ParsingError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""The base of all that typer raises about arguments; it moved between typer's versions and has no public name."""


class _Commands(CommandGroup):
    """Imports a command when it is called, and all of them to list them."""

    def list_commands(self, ctx: object) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | TyperGroup:
        name = _ALIASES.get(cmd_name, cmd_name)
        if name not in _COMMANDS:
            raise no_command(cmd_name, _COMMANDS, "kvsd")
        module = import_module(f"kvsd.cli.{_COMMANDS[name]}")
        command = get_command(module.apps[name] if hasattr(module, "apps") else module.app)
        assert isinstance(command, TyperCommand | TyperGroup)
        return command

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # as the base
        for title, family in _FAMILIES.items():
            self.format_family(ctx, formatter, title, family)


def run(arguments: list[str]) -> int:
    """Run the command that `arguments` name; its exit status. Raises whatever the command does, and UsageError."""
    kvsd_command = get_command(_app)
    try:
        with kvsd_command.make_context("kvsd", arguments) as context:
            kvsd_command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _ParsingError as error:
        misuse = cast("typer.BadParameter", error)
        command = misuse.ctx.command_path if misuse.ctx else "kvsd"
        what = misuse.format_message().rstrip(".")
        raise UsageError(f"{what[:1].lower()}{what[1:]}; `{command} --help` shows what it takes") from None
    return 0


def _show_version(wanted: bool) -> None:
    if wanted:
        Output().line(f"kvsd {kvsd.__version__}")
        raise typer.Exit


_app = new_command()


@_app.callback(cls=_Commands, invoke_without_command=True)
def _kvsd(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """kvsd: a persistent key-value daemon, and its client.

    \b
    Examples:
      kvsd init                  make a config.yaml and certificates here
      kvsd serve                 run the server, in the folder of a config.yaml
      kvsd set hello world       in the same folder: store a value
      kvsd get hello             read it
      kvsd scan user:            all keys that begin so, with their values

    Settings come from flags, then the environment (KVSD_...), then the config file; `kvsd config show` tells which.
    """
    show_help(context)
