"""`kvsd set`: store a value."""

import os
from typing import Annotated

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, changing_command
from kvsd.cli.durations import TtlOption, VersionOption, duration
from kvsd.cli.failures import UsageError
from kvsd.cli.output import for_json
from kvsd.cli.values import LiteralOption, ValueArgument, ValueCommand, value_of
from kvsd.client.numbers import ANY_VERSION

app = new_command()


@app.command("set", cls=ValueCommand)
@changing_command
def set_(
    options: ClientOptions,
    key: Annotated[str, typer.Argument(metavar="KEY", help="What to store the value under.")],
    value: ValueArgument,
    literal: LiteralOption = False,
    ttl: TtlOption = None,
    if_version: VersionOption = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is no such key.")] = False,
) -> None:
    """Store VALUE under KEY.

    OK says that it is on disk, unless the server is configured otherwise. A condition that does not hold changes
    nothing, and the exit status is 4. A value that begins with - needs no --
    before it, unless it is one of the options below; a key that does so needs it.

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
    content = value_of(value, options.output, literal=literal)
    version = ANY_VERSION if if_version is None else if_version
    with options.connect() as client:
        client.set(os.fsencode(key), content, ttl=seconds, if_version=version, if_absent=if_absent)
    options.output.done({"key": for_json(os.fsencode(key))})
