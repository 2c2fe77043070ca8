"""The ways in which a shell gives a value, in every command: as it stands, - for stdin, @FILE for a file.

Owns: these arguments, and reading what they name. Knows no command.
"""

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from typer.core import TyperCommand

from kvsd.cli.app import options_of
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Output
from kvsd.cli.streams import read_file, read_stdin
from kvsd.types import LARGEST_VALUE_BYTES

ValueArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="VALUE", help="The value; - is stdin, @FILE a file. It may begin with a dash.")
]
LiteralOption: TypeAlias = Annotated[bool, typer.Option("--literal", help="Store VALUE as it stands.")]


class ValueCommand(TyperCommand):
    """Takes KEY VALUE pairs, and what looks like an option, but is none of ours, for the value where one is due."""

    # The base's parameter is a class without a public name, and every context here is typer's own.
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, _sorted(args, dict.fromkeys(ctx.help_option_names, False) | options_of(self)))


def value_of(word: str, output: Output, *, literal: bool) -> bytes:
    """The bytes that VALUE stands for. Raises UsageError where it cannot be read, CommandFailed where stdin fails."""
    if literal or not (word == "-" or word.startswith("@")):
        return os.fsencode(word)
    if word == "-":
        output.reading("the value")
        return bytes(read_stdin(LARGEST_VALUE_BYTES, "; --literal stores the - itself"))
    name = word[1:]
    try:
        data = read_file(Path(name), LARGEST_VALUE_BYTES)
    except OSError as error:
        raise UsageError(
            f"cannot read the file {name!r}: {error.strerror}; --literal stores a value that begins with @"
        ) from None
    if len(data) > LARGEST_VALUE_BYTES:
        raise UsageError(f"{name} is longer than {LARGEST_VALUE_BYTES} bytes, the most that any server takes")
    return bytes(data)


def _sorted(args: list[str], takes_argument: dict[str, bool]) -> list[str]:
    """Options first, then --, then keys and values in turn: behind that nothing is taken for an option."""
    options: list[str] = []
    positional: list[str] = []
    rest = iter(args)
    for word in rest:
        name, equals, _ = word.partition("=")
        is_value_due = len(positional) % 2 == 1
        if word == "--":
            positional += rest
        elif name in takes_argument:
            options.append(word)
            if takes_argument[name] and not equals:
                argument = next(rest, None)
                if argument is None:
                    return options  # which typer refuses, and would take the -- below for the argument
                options.append(argument)
        elif word.startswith("-") and word != "-" and not is_value_due:
            options.append(word)  # a misspelt option, which typer refuses
        else:
            positional.append(word)
    return [*options, "--", *positional]
