"""The settings in a config file.

Owns: which keys a file may have, its users, and the file's errors: "FILE:LINE: SETTING …". Must not know the
other sources. Importing it costs what reading YAML costs: see document.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from kvsd.config import document, values
from kvsd.config.chosen import Chosen, did_you_mean, parsed, quoted
from kvsd.config.document import Items, Keys, Node, Scalar
from kvsd.config.settings import IGNORED, SECTIONS, SETTINGS, USERS, User, variable
from kvsd.errors import ConfigError

_USER_KEYS: Final[Mapping[str, Callable[[str], str]]] = {
    "username": values.name,
    "password_hash": values.password_hash,
    "password": values.secret,
}


def from_file(data: bytes, name: str, folder: Path) -> tuple[dict[str, Chosen], list[str]]:
    """What the file `data` sets, and warnings about keys without effect.

    `name` is what messages call the file; relative paths start at `folder`. A key without a value counts as
    not there. Raises ConfigError for an unknown or duplicate key and for a value of the wrong kind or out of
    range.
    """
    chosen: dict[str, Chosen] = {}
    warnings: list[str] = []
    for setting, node in _entries(document.parse(data, name), name):
        origin = f"{name}:{node.line}"
        if setting == USERS:
            chosen[setting] = Chosen(tuple(_users(node, name)), origin)
        elif setting in IGNORED:
            warnings.append(f"{origin}: {setting} {IGNORED[setting]}")
        elif setting not in SETTINGS:
            raise _unknown(origin, setting, (*SETTINGS, USERS))
        elif not SETTINGS[setting].in_file:
            raise ConfigError(
                f"{origin}: {setting} is not read from a file; set {variable(setting)} in the environment"
            )
        elif (text := _text(setting, node, name)) is not None:
            if SETTINGS[setting].parse is values.path:
                # The file is UTF-8, and names what has these bytes, whatever the locale.
                text = os.fsdecode(text.encode("utf-8", "surrogatepass"))
            chosen[setting] = parsed(SETTINGS[setting], text, origin, folder)
    return chosen, warnings


def _entries(root: Keys, name: str) -> Iterator[tuple[str, Node]]:
    """Each key of the sections, with its dotted name."""
    for section, node in root.nodes.items():
        if section not in SECTIONS:
            raise _unknown(f"{name}:{node.line}", section, (*SECTIONS, *SETTINGS, USERS))
        match node:
            case Keys():
                for key, value in node.nodes.items():
                    yield f"{section}.{key}", value
            case Scalar(text=None):
                pass
            case _:
                raise ConfigError(f"{name}:{node.line}: {section} must hold settings, each as `key: value`")


def _users(node: Node, name: str) -> Iterator[User]:
    match node:
        case Items():
            entries = node.nodes
        case Scalar(text=None):
            return
        case _:
            raise ConfigError(f"{name}:{node.line}: {USERS} must be a list of users")
    lines: dict[str, int] = {}
    for number, entry in enumerate(entries):
        user = _user(f"{USERS}[{number}]", entry, name)
        if user.username in lines:
            raise ConfigError(
                f"{name}:{entry.line}: {USERS}[{number}].username {quoted(user.username)} is given twice, "
                f"first in line {lines[user.username]}"
            )
        lines[user.username] = entry.line
        yield user


def _user(where: str, node: Node, name: str) -> User:
    if not isinstance(node, Keys):
        raise ConfigError(f"{name}:{node.line}: {where} must have the keys username and password_hash")
    given: dict[str, str] = {}
    for key, value in node.nodes.items():
        origin = f"{name}:{value.line}"
        if key not in _USER_KEYS:
            raise _unknown(origin, f"{where}.{key}", [f"{where}.{known}" for known in _USER_KEYS])
        if (text := _text(f"{where}.{key}", value, name)) is not None:
            try:
                given[key] = _USER_KEYS[key](text)
            except ValueError as error:
                raise ConfigError(f"{origin}: {where}.{key} {error}") from None
    if "username" not in given:
        raise ConfigError(f"{name}:{node.line}: {where}.username is missing")
    try:
        return User(**given)
    except ValueError as error:
        raise ConfigError(f"{name}:{node.line}: {where} {error}") from None


def _text(where: str, node: Node, name: str) -> str | None:
    if not isinstance(node, Scalar):
        kind = "a list" if isinstance(node, Items) else "a group of keys"
        raise ConfigError(f"{name}:{node.line}: {where} must be a single value, not {kind}")
    return node.text


def _unknown(origin: str, where: str, names: Iterable[str]) -> ConfigError:
    hint = did_you_mean(where, names) or f"; the sections of the file are {', '.join(SECTIONS)}"
    return ConfigError(f"{origin}: {where} is unknown{hint}")
