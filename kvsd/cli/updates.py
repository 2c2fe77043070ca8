"""`kvsd incr`, `decr`, `append`, `getset`, `getdel` and `exists`: what is decided where the value is."""

import os
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, changing_command, client_command
from kvsd.cli.failures import KeyNotFound
from kvsd.cli.output import for_json
from kvsd.cli.values import LiteralOption, ValueArgument, ValueCommand, value_of

apps: Final = {name: new_command() for name in ("incr", "decr", "append", "getset", "getdel", "exists")}

_Key = Annotated[str, typer.Argument(metavar="KEY", help="The key.")]
_Amount = Annotated[int, typer.Argument(metavar="[AMOUNT]", help="How much; 1 if it is left out.")]


@apps["incr"].command("incr", cls=ValueCommand)
@changing_command
def incr(options: ClientOptions, key: _Key, amount: _Amount = 1) -> None:
    """Add AMOUNT to the integer under KEY, and print the sum.

    Where there is no such key, the integer is 0.

    \b
    Examples:
      kvsd incr visitors
      kvsd incr stock 12
      kvsd incr balance -5
    """
    with options.connect() as client:
        total = client.incr(os.fsencode(key), amount)
    _print(options, key, total)


@apps["decr"].command("decr", cls=ValueCommand)
@changing_command
def decr(options: ClientOptions, key: _Key, amount: _Amount = 1) -> None:
    """Subtract AMOUNT from the integer under KEY, and print the rest.

    Where there is no such key, the integer is 0.

    \b
    Examples:
      kvsd decr stock
    """
    with options.connect() as client:
        rest = client.decr(os.fsencode(key), amount)
    _print(options, key, rest)


@apps["append"].command("append", cls=ValueCommand)
@changing_command
def append(options: ClientOptions, key: _Key, value: ValueArgument, literal: LiteralOption = False) -> None:
    """Put VALUE behind the value of KEY, and print the new length.

    Where there is no such key, VALUE is stored. The length is in bytes.

    \b
    Examples:
      kvsd append notes "one more"
      date | kvsd append log -
    """
    suffix = value_of(value, options.output, literal=literal)
    with options.connect() as client:
        length = client.append(os.fsencode(key), suffix)
    _print(options, key, length)


@apps["getset"].command("getset", cls=ValueCommand)
@changing_command
def getset(options: ClientOptions, key: _Key, value: ValueArgument, literal: LiteralOption = False) -> None:
    """Store VALUE under KEY, and print the value that it had.

    Prints nothing where it had none.

    \b
    Examples:
      kvsd getset leader me
    """
    new_value = value_of(value, options.output, literal=literal)
    with options.connect() as client:
        old_value = client.getset(os.fsencode(key), new_value)
    _print_value(options, key, old_value)


@apps["getdel"].command("getdel")
@changing_command
def getdel(options: ClientOptions, key: _Key) -> None:
    """Remove KEY, and print the exact value that it had.

    Where there is no such key the exit status is 3.

    \b
    Examples:
      kvsd getdel job
    """
    with options.connect() as client:
        value = client.getdel(os.fsencode(key))
    if value is None:
        raise KeyNotFound(key)
    _print_value(options, key, value)


@apps["exists"].command("exists")
@client_command
def exists(options: ClientOptions, key: _Key) -> None:
    """Print 1 where KEY has a value, else 0.

    Where it has none, the exit status is 3.

    \b
    Examples:
      kvsd exists hello && echo it is there
    """
    with options.connect() as client:
        is_there = client.exists(os.fsencode(key))
    _print(options, key, int(is_there))
    if not is_there:
        raise typer.Exit(KeyNotFound.exit_status)


def _print(options: ClientOptions, key: str, number: int) -> None:
    if options.json:
        options.output.document({"key": for_json(os.fsencode(key)), "result": number})
    else:
        options.output.line(str(number))


def _print_value(options: ClientOptions, key: str, value: bytes | None) -> None:
    if options.json:
        shown = None if value is None else for_json(value)
        options.output.document({"key": for_json(os.fsencode(key)), "value": shown})
    elif value is not None:
        options.output.value(value)
