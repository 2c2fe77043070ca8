"""The options that say how long a key lives, and which version it must have.

Owns: these options, and how durations are written in a shell. Knows no command.
"""

import re
from typing import Annotated, Final, TypeAlias

import typer

from kvsd.cli.failures import UsageError

TtlOption: TypeAlias = Annotated[
    str | None, typer.Option("--ttl", metavar="TIME", help="Have the key gone after 500ms, 30s, 5m, 2h or 1d.")
]
LARGEST_VERSION: Final = 2**63 - 1
"""A number that no key ever gets to."""

VersionOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--if-version", metavar="N", min=0, max=LARGEST_VERSION, help="Only if the key has this version; 0: none."
    ),
]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "": 1.0}
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d|)")


def duration(text: str) -> float:
    """The seconds that `text` says; raises UsageError where it says none."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"{text!r} is no time: a number and ms, s, m, h or d, such as 30s")
    return float(found[1]) * _UNITS[found[2]]
