"""A YAML file as plain values that remember their lines.

Owns: the part of YAML that a config file needs (keys, lists and single values in one document), and its
bounds. Single values stay text, as written: what `yes` or `0123` means is for the setting to say. Must not
know any setting. A message never quotes a value, since it may be a password.

Importing it costs 10 ms, for yaml: only who has a file to read does so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import yaml

from kvsd.errors import ConfigError

_MAX_DEPTH: Final = 8
_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; `text` is None where nothing, `~` or `null` stands."""

    line: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    line: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping; the line of each node is that of its key."""

    line: int
    nodes: dict[str, Node]


Node: TypeAlias = Scalar | Items | Keys


def parse(data: bytes, name: str) -> Keys:
    """The keys of the document `data`; none where it is empty. `name` is what messages call it.

    Raises ConfigError "NAME:LINE: …" for what is no YAML, for a key that is given twice, and for what no
    config file needs: anchors, aliases, tags, a second document, deep nesting.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: the file is not UTF-8 text") from None
    return _Reader(text, name).document()


class _Reader:
    """One pass over the parser's events: nothing is composed or constructed, so nothing can expand."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._events = self._parsed()

    def document(self) -> Keys:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return Keys(1, {})
        root = self._node(next(self._events), None, "", 0)
        next(self._events)  # the end of the document
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise self._error(_line(event), "a second document starts here; a config file holds one")
        match root:
            case Keys():
                return root
            case Scalar(text=None):
                return Keys(1, {})
            case _:
                raise self._error(root.line, "the file must hold sections of settings, such as server:")

    def _node(self, event: yaml.Event, key_line: int | None, where: str, depth: int) -> Node:
        """The node that starts with `event`, below the dotted name `where`."""
        line = key_line or _line(event)
        if depth > _MAX_DEPTH:
            raise self._error(line, f"{where} is nested too deeply")
        match event:
            case yaml.ScalarEvent(anchor=None, tag=None, value=value, implicit=(plain, _)):
                if not value.isascii() and not _is_text(value):
                    raise self._error(line, f"{where or 'the file'} holds an escape that is no character")
                return Scalar(line, None if plain and value in _NULLS else value)
            case yaml.SequenceStartEvent(anchor=None, tag=None):
                return Items(line, tuple(self._items(where, depth)))
            case yaml.MappingStartEvent(anchor=None, tag=None):
                return Keys(line, self._keys(where, depth))
            case _:
                raise self._error(
                    line, f"{where or 'the file'} begins with &, * or !, which needs quotes around the value"
                )

    def _items(self, where: str, depth: int) -> Iterator[Node]:
        number = 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, None, f"{where}[{number}]", depth + 1)
            number += 1

    def _keys(self, where: str, depth: int) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent) or not _KEY.fullmatch(event.value):
                # Not quoted: `password:secret` without its space is one long key.
                raise self._error(
                    line, f"{where or 'the file'} holds a key that is no name; is there a colon without a space?"
                )
            name = f"{where}.{event.value}" if where else event.value
            if (earlier := nodes.get(event.value)) is not None:
                raise self._error(line, f"{name} is given twice, first in line {earlier.line}")
            nodes[event.value] = self._node(next(self._events), line, name, depth + 1)
        return nodes

    def _parsed(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            # The parser quotes single characters, its own words, and tags: the last may be part of a password.
            problem = re.sub(r"'!.*'", "…", error.problem or "")
            raise self._error(mark.line + 1 if mark else 1, f"the file is no valid YAML: {problem}") from None
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise self._error(line, "the file holds a control character") from None
        except (ValueError, OverflowError):
            # What PyYAML lets through for an escape such as "\UFFFFFFFF"; it does not say where.
            raise self._error(1, "the file holds an escape or a number that YAML does not have") from None

    def _error(self, line: int, text: str) -> ConfigError:
        return ConfigError(f"{self._name}:{line}: {text}")


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1


def _is_text(value: str) -> bool:
    """Whether `value` is whole characters: an escape can name half of one."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
