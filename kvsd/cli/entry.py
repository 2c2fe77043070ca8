"""`kvsd entry`: a value with all that is known of it."""

import os
from typing import Annotated

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import KeyNotFound
from kvsd.cli.output import as_text, for_json

app = new_command()


@app.command("entry")
@client_command
def entry(options: ClientOptions, key: Annotated[str, typer.Argument(metavar="KEY", help="What to read.")]) -> None:
    """Print the value of KEY with its version and its times.

    The times are when it was written, and when it expires. The version is what `kvsd set --if-version`
    takes. Where there is no such key the exit status is 3.

    \b
    Examples:
      kvsd entry hello
      kvsd entry --json hello
    """
    wanted = os.fsencode(key)
    with options.connect() as client:
        found = client.entry(wanted)
    if found is None:
        raise KeyNotFound(key)
    expires = None if found.expires_at is None else found.expires_at.isoformat()
    if options.json:
        options.output.document(
            {
                "key": for_json(wanted),
                "value": for_json(found.value),
                "version": found.version,
                "timestamp": found.timestamp.isoformat(),
                "expires_at": expires,
            }
        )
        return
    options.output.line(f"version    {found.version}")
    options.output.line(f"timestamp  {found.timestamp.isoformat()}")
    options.output.line(f"expires    {expires or 'never'}")
    options.output.line(f"value      {as_text(found.value)}")
