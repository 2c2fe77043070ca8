"""`kvsd delete`: remove keys."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, changing_command
from kvsd.cli.durations import VersionOption
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Json, as_text, for_json, on_terminal
from kvsd.client.numbers import ANY_VERSION

if TYPE_CHECKING:
    from kvsd.client.sync import Client

app = new_command()

_GROUP_KEYS: Final = 16
"""Deletes that are sent at a time: each may bring a long value back."""

_SHOWN_BYTES: Final = 1_000
"""Bytes of an old value that a terminal gets."""


@app.command("delete")
@changing_command
def delete(
    options: ClientOptions,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="What to remove.")],
    if_version: VersionOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the value that the key had.")] = False,
) -> None:
    """Remove KEY, and print the value that it had.

    Prints "OK old value: " and the value, or "OK" where there was no such key, which is no error. A terminal gets the
    beginning of a long value, a pipe all of it. Of several keys the number of those that were there is printed; each
    is removed for itself, while `kvsd batch` removes all of them or none.

    \b
    Examples:
      kvsd delete hello
      kvsd delete --json hello
      kvsd delete hello --if-version 17
      kvsd keys -0 session: | xargs -0 kvsd delete --
    """
    unwanted = [os.fsencode(key) for key in keys]
    if len(unwanted) > 1:
        if if_version is not None:
            raise UsageError("--if-version is about one key; delete the others by commands of their own")
        _delete_all(options, unwanted, quiet=quiet)
        return
    version = ANY_VERSION if if_version is None else if_version
    with options.connect() as client:
        old_value = client.delete(unwanted[0], if_version=version)
    if options.json:
        options.output.document(_document(unwanted[0], old_value, quiet=quiet))
    elif quiet or old_value is None:
        options.output.line("OK")
    else:
        is_cut = on_terminal() and len(old_value) > _SHOWN_BYTES
        options.output.line(f"OK old value: {as_text(old_value[:_SHOWN_BYTES] if is_cut else old_value)}")
        if is_cut:
            options.output.note(f"these are the first {_SHOWN_BYTES} of its {len(old_value)} bytes")


def _delete_all(options: ClientOptions, keys: list[bytes], *, quiet: bool) -> None:
    """Remove `keys` before anything is printed: a reader that goes away changes nothing about it."""
    removed = 0
    documents: list[dict[str, Json]] = []
    with options.connect() as client:
        for key, old_value in _old_values(client, keys):
            removed += old_value is not None
            if options.json:
                documents.append(_document(key, old_value, quiet=quiet))
    for document in documents:
        options.output.document(document)
    if not options.json:
        options.output.line("OK" if quiet else f"OK removed keys: {removed}")


def _old_values(client: "Client", keys: list[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """Removes `keys`: each with the value that it had."""
    from kvsd.client import calls

    for at in range(0, len(keys), _GROUP_KEYS):
        group = keys[at : at + _GROUP_KEYS]
        yield from zip(group, client.run_all([calls.delete(key) for key in group]), strict=True)


def _document(key: bytes, old_value: bytes | None, *, quiet: bool) -> dict[str, Json]:
    document: dict[str, Json] = {"key": for_json(key), "status": "OK"}
    if not quiet:
        document["old_value"] = None if old_value is None else for_json(old_value)
    return document
