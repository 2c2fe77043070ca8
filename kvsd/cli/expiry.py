"""`kvsd expire`, `ttl` and `persist`: when a key goes by itself."""

import os
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, changing_command, client_command
from kvsd.cli.durations import duration
from kvsd.cli.failures import KeyNotFound
from kvsd.cli.output import for_json
from kvsd.cli.values import ValueCommand

apps: Final = {name: new_command() for name in ("expire", "ttl", "persist")}

_Key = Annotated[str, typer.Argument(metavar="KEY", help="The key.")]


@apps["expire"].command("expire", cls=ValueCommand)
@changing_command
def expire(
    options: ClientOptions,
    key: _Key,
    time: Annotated[str, typer.Argument(metavar="TIME", help="500ms, 30s, 5m, 2h or 1d from now.")],
) -> None:
    """Have KEY gone after TIME.

    \b
    Examples:
      kvsd expire session 30m
    """
    seconds = duration(time)
    with options.connect() as client:
        if not client.expire(os.fsencode(key), seconds):
            raise KeyNotFound(key)
    options.output.done({"key": for_json(os.fsencode(key))})


@apps["ttl"].command("ttl")
@client_command
def ttl(options: ClientOptions, key: _Key) -> None:
    """Print the seconds that KEY has left, or "never".

    \b
    Examples:
      kvsd ttl session
    """
    with options.connect() as client:
        seconds = client.ttl(os.fsencode(key))
        if seconds is None and not client.exists(os.fsencode(key)):
            raise KeyNotFound(key)
    left = None if seconds is None else round(seconds, 3)
    if options.json:
        options.output.document({"key": for_json(os.fsencode(key)), "ttl_seconds": left})
    else:
        options.output.line("never" if left is None else f"{left:.3f}".rstrip("0").rstrip("."))


@apps["persist"].command("persist")
@changing_command
def persist(options: ClientOptions, key: _Key) -> None:
    """Have KEY stay: take its expiry away.

    \b
    Examples:
      kvsd persist session
    """
    with options.connect() as client:
        if not client.persist(os.fsencode(key)) and not client.exists(os.fsencode(key)):
            raise KeyNotFound(key)
    options.output.done({"key": for_json(os.fsencode(key))})
