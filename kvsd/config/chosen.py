"""A value with its origin, and the one shape that errors about settings have: "ORIGIN: SETTING …".

Owns: the step from a source's text to a checked value, and the hint at the nearest name. Must not know the
sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kvsd.config.settings import Setting
from kvsd.errors import ConfigError


class Chosen(NamedTuple):
    """The value of a setting, and where it came from: "config.yaml:3"."""

    value: object
    origin: str


def parsed(setting: Setting, text: str, origin: str, folder: Path) -> Chosen:
    """What `text` means for `setting`; a relative path starts at `folder`.

    Raises ConfigError, which quotes the text unless the setting is a secret.
    """
    try:
        value = setting.parse(text)
    except ValueError as error:
        given = "" if setting.secret else f", not {quoted(text)}"
        raise ConfigError(f"{origin}: {setting.name} {error}{given}") from None
    return Chosen(folder / value if isinstance(value, Path) else value, origin)


def quoted(text: str) -> str:
    """`text` for a message: escaped, and cut where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of `names`, as the end of a sentence; "" where none is near."""
    # Imported here: needed for mistakes only.
    from difflib import get_close_matches

    names = sorted(names)
    _, _, key = name.rpartition(".")
    in_another_section = [other for other in names if other.endswith(f".{key}")]
    nearest = in_another_section or get_close_matches(name, names, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
