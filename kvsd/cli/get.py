"""`kvsd get`: print a value."""

import os
from typing import Annotated

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import KeyNotFound
from kvsd.cli.output import for_json

app = new_command()


@app.command("get")
@client_command
def get(options: ClientOptions, key: Annotated[str, typer.Argument(metavar="KEY", help="What to read.")]) -> None:
    """Print the value of KEY.

    A pipe or a file gets its exact bytes. On a terminal a newline is added, and what could steer the terminal is
    escaped. Where there is no such key nothing is printed, and the exit status is 3.

    \b
    Examples:
      kvsd get hello
      kvsd get picture > picture.png
      kvsd get --json hello
    """
    wanted = os.fsencode(key)
    with options.connect() as client:
        value = client.get(wanted)
    if value is None:
        raise KeyNotFound(key)
    if options.json:
        options.output.document({"key": for_json(wanted), "value": for_json(value)})
    else:
        options.output.value(value)
