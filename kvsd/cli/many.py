"""`kvsd mget`, `mset` and `batch`: several keys with one command."""

import json
import os
from base64 import b64decode
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, changing_command, client_command
from kvsd.cli.durations import LARGEST_VERSION, duration
from kvsd.cli.failures import UsageError
from kvsd.cli.output import as_text, for_json
from kvsd.cli.streams import stdin_lines
from kvsd.cli.values import LiteralOption, ValueCommand, value_of
from kvsd.client.batch import Batch
from kvsd.client.numbers import ANY_VERSION, Unconditional
from kvsd.errors import KvsdError
from kvsd.types import MAX_BATCH_BYTES, MAX_BATCH_STEPS

apps: Final = {name: new_command() for name in ("mget", "mset", "batch")}

_MAX_INPUT_BYTES: Final = 8 * MAX_BATCH_BYTES
"""The size of a batch as JSON, which has six bytes for some of its characters."""

_MAX_LINES: Final = 100 * MAX_BATCH_STEPS
"""Empty ones included."""


@apps["mget"].command("mget")
@client_command
def mget(
    options: ClientOptions, keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="The keys.")]
) -> None:
    """Print the values of several keys.

    A line each: the key, a tab, the value. Absent keys are left out.

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
            options.output.line(as_text(key), as_text(value))


@apps["mset"].command("mset", cls=ValueCommand)
@changing_command
def mset(
    options: ClientOptions,
    pairs: Annotated[
        list[str],
        typer.Argument(metavar="KEY VALUE...", help="Keys and values in turn; as a value, - is stdin, @FILE a file."),
    ],
    literal: LiteralOption = False,
) -> None:
    """Store several values, each for itself.

    `kvsd batch` stores all of them or none. A value may begin with a dash.

    \b
    Examples:
      kvsd mset first 1 second 2
      kvsd mset picture @picture.png degrees -5
    """
    if len(pairs) % 2:
        raise UsageError("a value is missing: give keys and values in turn")
    if pairs[1::2].count("-") > 1 and not literal:
        raise UsageError("stdin can be one value only; --literal stores each - itself")
    items = {
        os.fsencode(key): value_of(value, options.output, literal=literal)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True)
    }
    with options.connect() as client:
        client.set_many(items)
    options.output.done()


@apps["batch"].command("batch")
@changing_command
def batch(options: ClientOptions) -> None:
    """Carry out the steps on stdin, all of them or none.

    A JSON document a line: {"op": "set", "key": ..., "value": ...} with "ttl", "if_version" or "if_absent" where they
    are wanted, {"op": "delete", "key": ...} with "if_version", {"op": "check", "key": ..., "version": ...}. Keys and
    values are text, stored as UTF-8, or {"base64": ...}. Where a condition does not hold, nothing is changed and the
    exit status is 4.

    \b
    Examples:
      kvsd batch < steps.ndjson
      echo '{"op": "set", "key": "a", "value": "1"}' | kvsd batch
    """
    options.output.reading("steps")
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
    """The steps on stdin, and the line of each."""
    steps = 0
    for number, line in enumerate(stdin_lines(_MAX_INPUT_BYTES), 1):
        if number > _MAX_LINES:
            raise UsageError(f"stdin has more than {_MAX_LINES} lines")
        if not line.strip():
            continue
        steps += 1
        if steps > MAX_BATCH_STEPS:
            raise UsageError(f"a batch has at most {MAX_BATCH_STEPS} steps; divide it")
        try:
            document = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_once, parse_constant=_refuse)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise UsageError(f"line {number} of stdin is no JSON object in UTF-8 that has each name once")
        yield number, document


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError
    return document


def _refuse(_: str) -> None:
    """Raise ValueError for NaN and Infinity, which are not JSON."""
    raise ValueError


def _add(together: Batch, step: dict[str, object]) -> None:
    words = dict(step)
    operation, key = words.pop("op"), _bytes(words.pop("key"))
    match operation:
        case "set":
            value, ttl = _bytes(words.pop("value")), words.pop("ttl", None)
            seconds = None if ttl is None else duration(str(ttl))
            version, absent = _condition(words), words.pop("if_absent", False)
            if not isinstance(absent, bool):
                raise TypeError("if_absent is true or false")
            together.set(key, value, ttl=seconds, if_version=version, if_absent=absent)
        case "delete":
            together.delete(key, if_version=_condition(words))
        case "check":
            together.check(key, _version(words.pop("version")))
        case _:
            raise ValueError("op must be set, delete or check")
    if words:
        raise ValueError(f"nothing is known of {', '.join(map(repr, words))}")


def _bytes(given: object) -> bytes:
    match given:
        case str():
            try:
                return given.encode()
            except UnicodeEncodeError:
                raise ValueError("half of a surrogate pair is no text; write the bytes as base64") from None
        case {"base64": str() as text, **rest} if not rest:
            return b64decode(text, validate=True)
        case _:
            raise TypeError('keys and values are text or {"base64": ...}')


def _condition(words: dict[str, object]) -> int | Unconditional:
    # Only a missing one is none: a null is a version that somebody's program did not find.
    return _version(words.pop("if_version")) if "if_version" in words else ANY_VERSION


def _version(given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= LARGEST_VERSION:
        return given
    raise TypeError(f"a version is a whole number from 0 to {LARGEST_VERSION}")
