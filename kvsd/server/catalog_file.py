"""The file ROOT/catalog: what it holds, and its bytes.

Owns: the format and its checksum. Synchronous and pure. Must not know folders, nor what the entries are good for.

An older kvsd reads `namespaces` and `tables` alone, and drops the rest when it writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from kvsd.errors import ConfigError, InvalidValue
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings, settings_from, texts_of
from kvsd.table.known import KnownLog
from kvsd.types import NAME

_MAGIC: Final = "kvsd catalog 1 "
_HEAD: Final = re.compile(rb"kvsd catalog ([0-9]{1,9}) ([0-9A-F]{8})\n")
_TABLE_ID_BYTES: Final = 16


class Leaving(NamedTuple):
    """A table that was dropped, whose files are still in its folder: the mark of a drop that is not done yet."""

    table_id: bytes
    seconds: int
    """The time when it was dropped, since 1970."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The whole of what a catalog says; `default/default` is always there."""

    namespaces: frozenset[str] = frozenset({DEFAULT_TABLE.namespace})
    tables: Mapping[TableName, TableSettings] = field(default_factory=lambda: {DEFAULT_TABLE: TableSettings()})
    logs: Mapping[TableName, KnownLog] = field(default_factory=dict)
    """Knowledge of the tables' logs; none of those that an older kvsd has made."""
    leaving: Mapping[TableName, Leaving] = field(default_factory=dict)

    def encode(self) -> bytes:
        body = json.dumps(
            {
                "namespaces": sorted(self.namespaces),
                "tables": {str(name): texts_of(self.tables[name]) for name in sorted(self.tables)},
                "logs": {
                    str(name): {"id": log.table_id.hex(), "seq": log.last_seq}
                    for name, log in sorted(self.logs.items())
                },
                "leaving": {
                    str(name): {"id": table.table_id.hex(), "seconds": table.seconds}
                    for name, table in sorted(self.leaving.items())
                },
            },
            indent=1,
        ).encode("ascii")
        return f"{_MAGIC}{crc32(body):08X}\n".encode("ascii") + body + b"\n"

    @classmethod
    def decode(cls, data: bytes, path: Path) -> Contents:
        """Raises ConfigError for all that `encode` does not make."""
        head = _HEAD.match(data)
        if head is not None and int(head[1]) != 1:
            raise ConfigError(
                f"{path} has format {int(head[1])}, which this kvsd does not know; use a newer one, or restore the "
                "file from a backup if there is none"
            )
        if head is None or f"{crc32(data[head.end() : -1]):08X}".encode("ascii") != head[2] or data[-1:] != b"\n":
            raise _damaged(path, "its checksum does not hold")
        try:
            body = json.loads(data[head.end() :])
            namespaces = {DEFAULT_TABLE.namespace, *map(_checked, body["namespaces"])}
            tables = {DEFAULT_TABLE: TableSettings()}
            for name, texts in body["tables"].items():
                tables[_table_name(name)] = settings_from(texts)
            # An older kvsd had begun the log of this one before it wrote a catalog.
            logs: dict[TableName, KnownLog] = {} if "logs" in body else {DEFAULT_TABLE: KnownLog(b"", 0)}
            for name, log in body.get("logs", {}).items():
                logs[_table_name(name)] = KnownLog(_table_id(log["id"]), int(log["seq"]))
            return cls(
                frozenset(namespaces | {name.namespace for name in tables}),
                tables,
                logs,
                {
                    _table_name(name): Leaving(_table_id(table["id"]), int(table["seconds"]))
                    for name, table in body.get("leaving", {}).items()
                },
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidValue) as error:
            raise _damaged(path, str(error)) from error


def check_name(name: str) -> None:
    """Raises InvalidValue for what cannot be the name of a namespace or table."""
    if not NAME.fullmatch(name):
        raise InvalidValue(
            "a namespace or table is called by up to 64 of a-z, 0-9, _ and -, and begins with a letter or digit"
        )


def _checked(name: str) -> str:
    check_name(name)
    return name


def _table_name(text: str) -> TableName:
    namespace, table = map(_checked, text.split("/"))
    return TableName(namespace, table)


def _table_id(text: str) -> bytes:
    table_id = bytes.fromhex(text)
    if len(table_id) not in (0, _TABLE_ID_BYTES):
        raise ValueError(f"{text!r} is no table id")
    return table_id


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: {why}. Restore it from a backup, or remove it: then every folder below "
        f"{path.with_name('namespaces')} becomes a table with the server's settings"
    )
