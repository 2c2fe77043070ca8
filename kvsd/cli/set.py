"""`kvsd set`: store a value."""

import itertools
import os
import sys
from pathlib import Path
from typing import IO, Annotated, Final

import typer
from typer.core import TyperCommand, TyperOption

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.durations import TtlOption, VersionOption, duration
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Output, for_json
from kvsd.types import LARGEST_VALUE_BYTES

app = new_command()

_PIECE_BYTES: Final = 1024 * 1024


class _Set(TyperCommand):
    """Takes what looks like an option, but is none of ours, for the value where that is expected."""

    # The base's parameter is a class without a public name, and every context here is typer's own.
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        takes_argument = dict.fromkeys(ctx.help_option_names, False)
        for option in self.params:
            if isinstance(option, TyperOption):
                takes_argument |= dict.fromkeys(option.opts, not option.is_flag)
        return super().parse_args(ctx, _sorted(args, takes_argument))


@app.command("set", cls=_Set)
@client_command
def set_(
    options: ClientOptions,
    key: Annotated[str, typer.Argument(metavar="KEY", help="What to store the value under.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The value; - is stdin, @FILE a file.")],
    literal: Annotated[bool, typer.Option("--literal", help="Store VALUE as it stands.")] = False,
    ttl: TtlOption = None,
    if_version: VersionOption = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is no such key.")] = False,
) -> None:
    """Store VALUE under KEY.

    OK says that it is on disk, unless the server is configured otherwise. A condition that does not hold changes
    nothing, and the exit status is 4. A value that begins with - needs no --
    before it, unless it is one of the options below.

    \b
    Examples:
      kvsd set hello world
      kvsd set picture @picture.png
      date | kvsd set today -
      kvsd set balance -5
      kvsd set --literal handle @jack
      kvsd set session abc --ttl 30m
      kvsd set leader me --if-absent
    """
    if if_absent and if_version is not None:
        raise UsageError("--if-version and --if-absent exclude each other; give one of them")
    seconds = None if ttl is None else duration(ttl)
    content = os.fsencode(value) if literal else _content(value, options.output)
    with options.connect() as client:
        client.set(os.fsencode(key), content, ttl=seconds, if_version=if_version, if_absent=if_absent)
    options.output.done({"key": for_json(os.fsencode(key))})


def _sorted(args: list[str], takes_argument: dict[str, bool]) -> list[str]:
    """Options first, then --, then key and value: behind that nothing is taken for an option."""
    options: list[str] = []
    positional: list[str] = []
    rest = iter(args)
    for word in rest:
        name, equals, _ = word.partition("=")
        if word == "--":
            positional += rest
        elif name in takes_argument:
            options.append(word)
            if takes_argument[name] and not equals:
                options += itertools.islice(rest, 1)
        elif word.startswith("-") and word != "-" and len(positional) != 1:
            options.append(word)  # not where the value goes: a misspelt option, which typer refuses
        else:
            positional.append(word)
    return [*options, "--", *positional]


def _content(value: str, output: Output) -> bytes:
    """The bytes that VALUE stands for; UsageError where they cannot be read."""
    if value == "-":
        if sys.stdin is None:
            raise UsageError("stdin is closed; --literal stores the - itself")
        if sys.stdin.isatty():
            output.note("reading the value from the terminal; Ctrl-D on a line of its own ends it")
        return _read(sys.stdin.buffer, "stdin")
    if value.startswith("@"):
        name = value[1:]
        try:
            with Path(name).open("rb") as file:
                return _read(file, name)
        except OSError as error:
            raise UsageError(
                f"cannot read the file {name!r}: {error.strerror}; --literal stores a value that begins with @"
            ) from None
    return os.fsencode(value)


def _read(file: IO[bytes], name: str) -> bytes:
    data = bytearray()
    while len(data) <= LARGEST_VALUE_BYTES:
        piece = file.read(_PIECE_BYTES)
        data += piece
        if len(piece) < _PIECE_BYTES:  # only the end is short; reading on would ask a terminal for more
            break
    if len(data) > LARGEST_VALUE_BYTES:
        raise UsageError(f"{name} is longer than {LARGEST_VALUE_BYTES} bytes, the most that any server takes")
    return bytes(data)
