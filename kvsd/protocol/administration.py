"""Messages 96 to 127: the administration of namespaces and tables.

Owns: these messages, and the frames that each is made of. Must not know how bytes arrive, nor how a table is made.

A namespace or table of None means the session's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from kvsd.protocol.frames import encode_frame
from kvsd.protocol.grammar import BLOB, NAME, TEXT, Form, Frames, Many, required

Pairs: TypeAlias = tuple[tuple[str, str], ...]
"""Settings by name, with values as in the configuration; the value `default` takes one back."""


class AdministrationType(IntEnum):
    """The byte behind `#`."""

    TABLE_CREATE = 96
    TABLE_LIST = 97
    TABLE_INFO = 98
    TABLE_SETTINGS = 99
    TABLE_DROP = 100
    TABLE_REOPEN = 101
    NAMESPACE_CREATE = 102
    NAMESPACE_LIST = 103
    NAMESPACE_DROP = 104
    COMPACT = 105
    REPORT = 106


@dataclass(frozen=True, slots=True)
class TableCreate:
    """Make a table with these settings; answered by Success(None)."""

    namespace: str | None
    table: str
    settings: Pairs = ()


@dataclass(frozen=True, slots=True)
class TableList:
    """All tables of a namespace, None: of all of them, and those that were dropped; answered by Report."""

    namespace: str | None


@dataclass(frozen=True, slots=True)
class TableInfo:
    """All that is known of a table, which is opened for it; answered by Report."""

    namespace: str | None
    table: str | None


@dataclass(frozen=True, slots=True)
class TableSettings:
    """Change these settings, if any; answered by Report, with all of them as they are now."""

    namespace: str | None
    table: str | None
    changes: Pairs = ()


@dataclass(frozen=True, slots=True)
class TableDrop:
    """Forget a table and set its files aside; answered by Success(None)."""

    namespace: str | None
    table: str


@dataclass(frozen=True, slots=True)
class TableReopen:
    """Close a table and recover it anew, which brings a read-only one back; answered by Success(None)."""

    namespace: str | None
    table: str | None


@dataclass(frozen=True, slots=True)
class NamespaceCreate:
    """Make a namespace; answered by Success(None)."""

    namespace: str


@dataclass(frozen=True, slots=True)
class NamespaceList:
    """All namespaces; answered by Report."""


@dataclass(frozen=True, slots=True)
class NamespaceDrop:
    """Forget a namespace, which must be empty; answered by Success(None)."""

    namespace: str


@dataclass(frozen=True, slots=True)
class Compact:
    """`action` is to start a compaction, pause it, resume it, or only tell its status; answered by Report."""

    namespace: str | None
    table: str | None
    action: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked for, as a JSON document."""

    document: bytes


AdministrationRequest: TypeAlias = (
    TableCreate
    | TableList
    | TableInfo
    | TableSettings
    | TableDrop
    | TableReopen
    | NamespaceCreate
    | NamespaceList
    | NamespaceDrop
    | Compact
)
AdministrationMessage: TypeAlias = AdministrationRequest | Report


def _encode_pairs(pairs: Pairs) -> list[bytes]:
    return [encode_frame(text) for pair in pairs for text in pair]


def _take_pair(frames: Frames) -> tuple[str, str]:
    return required(frames.optional_text()), required(frames.optional_text())


_PAIRS: Final = Many[tuple[str, str]](_encode_pairs, _take_pair)

FORMS: Final[Mapping[IntEnum, Form[AdministrationMessage]]] = {
    AdministrationType.TABLE_CREATE: (TableCreate, (NAME, TEXT, _PAIRS)),
    AdministrationType.TABLE_LIST: (TableList, (NAME,)),
    AdministrationType.TABLE_INFO: (TableInfo, (NAME, NAME)),
    AdministrationType.TABLE_SETTINGS: (TableSettings, (NAME, NAME, _PAIRS)),
    AdministrationType.TABLE_DROP: (TableDrop, (NAME, TEXT)),
    AdministrationType.TABLE_REOPEN: (TableReopen, (NAME, NAME)),
    AdministrationType.NAMESPACE_CREATE: (NamespaceCreate, (TEXT,)),
    AdministrationType.NAMESPACE_LIST: (NamespaceList, ()),
    AdministrationType.NAMESPACE_DROP: (NamespaceDrop, (TEXT,)),
    AdministrationType.COMPACT: (Compact, (NAME, NAME, TEXT)),
    AdministrationType.REPORT: (Report, (BLOB,)),
}
