"""`kvsd incr`, `decr`, `append`, `getset`, `getdel` and `exists`: what is decided where the value is."""

import os
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import KeyNotFound
from kvsd.cli.output import as_text, for_json, on_terminal, write

apps: Final = {name: new_command() for name in ("incr", "decr", "append", "getset", "getdel", "exists")}

_Key = Annotated[str, typer.Argument(metavar="KEY", help="The key.")]
_Amount = Annotated[int, typer.Argument(metavar="[AMOUNT]", help="How much; 1 if it is left out.")]
_Value = Annotated[str, typer.Argument(metavar="VALUE", help="The value.")]


@apps["incr"].command("incr")
@client_command
def incr(options: ClientOptions, key: _Key, amount: _Amount = 1) -> None:
    """Add AMOUNT to the integer under KEY, 0 where there is none, and print the sum.

    \b
    Examples:
      kvsd incr visitors
      kvsd incr stock 12
    """
    with options.connect() as client:
        _print(options, key, client.incr(os.fsencode(key), amount))


@apps["decr"].command("decr")
@client_command
def decr(options: ClientOptions, key: _Key, amount: _Amount = 1) -> None:
    """Subtract AMOUNT from the integer under KEY, 0 where there is none, and print the difference.

    \b
    Examples:
      kvsd decr stock
    """
    with options.connect() as client:
        _print(options, key, client.decr(os.fsencode(key), amount))


@apps["append"].command("append")
@client_command
def append(options: ClientOptions, key: _Key, value: _Value) -> None:
    """Put VALUE behind the value of KEY, or store it, and print the new length in bytes.

    \b
    Examples:
      kvsd append notes "one more"
    """
    with options.connect() as client:
        _print(options, key, client.append(os.fsencode(key), os.fsencode(value)))


@apps["getset"].command("getset")
@client_command
def getset(options: ClientOptions, key: _Key, value: _Value) -> None:
    """Store VALUE under KEY and print the value that it had; nothing where it had none.

    \b
    Examples:
      kvsd getset leader me
    """
    with options.connect() as client:
        _print_value(options, key, client.getset(os.fsencode(key), os.fsencode(value)))


@apps["getdel"].command("getdel")
@client_command
def getdel(options: ClientOptions, key: _Key) -> None:
    """Remove KEY and print the exact value that it had; where there is no such key the exit status is 3.

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
    """Print 1 where KEY has a value; where it has none, print 0, and the exit status is 3.

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
    elif value is not None and on_terminal():
        options.output.line(as_text(value))
    elif value is not None:
        write(value)
