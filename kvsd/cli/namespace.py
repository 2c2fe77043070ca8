"""`kvsd namespace …`: make, list and drop namespaces."""

from typing import Annotated

import typer

from kvsd.cli.app import new_group
from kvsd.cli.client import ClientOptions, changing_command, client_command

app = new_group("Make, list and drop namespaces, in which tables are.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The namespace.")]


@app.command("create")
@changing_command
def create(options: ClientOptions, name: _Name) -> None:
    """Make the namespace NAME.

    \b
    Examples:
      kvsd namespace create shop
    """
    with options.connect() as client:
        client.namespaces.create(name)
    options.output.done()


@app.command("list")
@client_command
def list_(options: ClientOptions) -> None:
    """List the namespaces.

    \b
    Examples:
      kvsd namespace list
    """
    with options.connect() as client:
        names = client.namespaces.list()
    for name in names:
        if options.json:
            options.output.document({"namespace": name})
        else:
            options.output.line(name)


@app.command("drop")
@changing_command
def drop(options: ClientOptions, name: _Name) -> None:
    """Drop the namespace NAME, which must have no tables.

    \b
    Examples:
      kvsd namespace drop shop
    """
    with options.connect() as client:
        client.namespaces.drop(name)
    options.output.done()
