"""`kvsd delete`: remove a key."""

import os
from typing import Annotated

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.durations import VersionOption
from kvsd.cli.output import as_text, for_json

app = new_command()


@app.command("delete")
@client_command
def delete(
    options: ClientOptions,
    key: Annotated[str, typer.Argument(metavar="KEY", help="What to remove.")],
    if_version: VersionOption = None,
) -> None:
    """Remove KEY and print the value that it had.

    Prints "OK old value: " and the value, or "OK" where there was no such key, which is no error.

    \b
    Examples:
      kvsd delete hello
      kvsd delete --json hello
      kvsd delete hello --if-version 17
    """
    unwanted = os.fsencode(key)
    with options.connect() as client:
        old_value = client.delete(unwanted, if_version=if_version)
    if options.json:
        shown = None if old_value is None else for_json(old_value)
        options.output.document({"key": for_json(unwanted), "status": "OK", "old_value": shown})
    elif old_value is None:
        options.output.line("OK")
    else:
        options.output.line(f"OK old value: {as_text(old_value)}")
