"""`kvsd mget`, `mset` and `batch`: several keys with one command."""

import json
import os
import sys
from base64 import b64decode
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.durations import duration
from kvsd.cli.failures import UsageError
from kvsd.cli.output import as_text, for_json
from kvsd.client.batch import Batch
from kvsd.errors import KvsdError

apps: Final = {name: new_command() for name in ("mget", "mset", "batch")}

_MAX_LINE_BYTES: Final = 64 << 20


@apps["mget"].command("mget")
@client_command
def mget(
    options: ClientOptions, keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="The keys.")]
) -> None:
    """Print the values of several keys, a line each: the key, a tab, the value. Absent keys are left out.

    \b
    Examples:
      kvsd mget first second
    """
    wanted = [os.fsencode(key) for key in keys]
    with options.connect() as client:
        values = client.get_many(wanted)
    for key, value in zip(wanted, values, strict=True):
        if options.json:
            options.output.document({"key": for_json(key), "value": None if value is None else for_json(value)})
        elif value is not None:
            options.output.line(f"{as_text(key)}\t{as_text(value)}")


@apps["mset"].command("mset")
@client_command
def mset(
    options: ClientOptions,
    pairs: Annotated[list[str], typer.Argument(metavar="KEY VALUE...", help="Keys and values in turn.")],
) -> None:
    """Store several values, each for itself; `kvsd batch` stores all of them or none.

    \b
    Examples:
      kvsd mset first 1 second 2
    """
    if len(pairs) % 2:
        raise UsageError("a value is missing: give keys and values in turn")
    words = [os.fsencode(word) for word in pairs]
    with options.connect() as client:
        client.set_many(dict(zip(words[::2], words[1::2], strict=True)))
    options.output.done()


@apps["batch"].command("batch")
@client_command
def batch(options: ClientOptions) -> None:
    """Carry out the steps on stdin, all of them or none.

    A JSON document a line: {"op": "set", "key": ..., "value": ...} with "ttl", "if_version" or "if_absent" where they
    are wanted, {"op": "delete", "key": ...} with "if_version", {"op": "check", "key": ..., "version": ...}. Keys and
    values are text, or {"base64": ...}. Where a condition does not hold, nothing is changed and the exit status is 4.

    \b
    Examples:
      kvsd batch < steps.ndjson
      echo '{"op": "set", "key": "a", "value": "1"}' | kvsd batch
    """
    steps = list(_documents())
    with options.connect() as client, client.batch() as together:
        for number, step in steps:
            try:
                _add(together, step)
            except KeyError as error:
                raise UsageError(f"line {number} of stdin is no step: it has no {error.args[0]!r}") from None
            except (TypeError, ValueError, KvsdError) as error:
                raise UsageError(f"line {number} of stdin is no step: {error}") from None
    options.output.done()


def _documents() -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(iter(lambda: sys.stdin.buffer.readline(_MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > _MAX_LINE_BYTES:
            raise UsageError(f"line {number} of stdin is longer than {_MAX_LINE_BYTES} bytes")
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise UsageError(f"line {number} of stdin is no JSON object")
        yield number, document


def _add(together: Batch, step: dict[str, object]) -> None:
    words = dict(step)
    operation, key = words.pop("op"), _bytes(words.pop("key"))
    match operation:
        case "set":
            value, ttl = _bytes(words.pop("value")), words.pop("ttl", None)
            seconds = None if ttl is None else duration(str(ttl))
            version, absent = _version(words.pop("if_version", None)), words.pop("if_absent", False)
            if not isinstance(absent, bool):
                raise TypeError("if_absent is true or false")
            together.set(key, value, ttl=seconds, if_version=version, if_absent=absent)
        case "delete":
            together.delete(key, if_version=_version(words.pop("if_version", None)))
        case "check":
            version = _version(words.pop("version"))
            if version is None:
                raise TypeError("version must be a number")
            together.check(key, version)
        case _:
            raise ValueError("op must be set, delete or check")
    if words:
        raise ValueError(f"nothing is known of {', '.join(map(repr, words))}")


def _bytes(given: object) -> bytes:
    match given:
        case str():
            return os.fsencode(given)
        case {"base64": str() as text, **rest} if not rest:
            return b64decode(text, validate=True)
        case _:
            raise TypeError('keys and values are text or {"base64": ...}')


def _version(given: object) -> int | None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 0):
        return given
    raise TypeError("a version is a whole number")
