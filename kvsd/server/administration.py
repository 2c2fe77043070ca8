"""Commands about namespaces and tables, as words in and a JSON document out.

Owns: the grammar of these commands and the shape of their reports (docs/wire-format.md). Must not know sessions, nor
how a change is carried out; the tables do that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final, TypeAlias

from kvsd.errors import InvalidValue, KvsdError
from kvsd.server.catalog import settings_from, texts_of
from kvsd.server.dispatcher import TableName
from kvsd.server.tables import TableEntry, TableInfo, Tables
from kvsd.types import NAME

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json] | None"

COMMANDS: Final = (
    "namespace list, namespace create NAME, namespace drop NAME, table list [NAMESPACE], table dropped, "
    "table info TABLE, table create TABLE [SETTING=VALUE ...], table settings TABLE [SETTING=VALUE ...], "
    "table drop TABLE, table reopen TABLE"
)


class Administration:
    """Carries out one command after the other, for anybody who may."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def run(self, words: Sequence[str]) -> bytes:
        """The report of one command. Raises what the tables raise, and InvalidValue for what is no command."""
        return json.dumps(await self._run(list(words))).encode()

    async def _run(self, words: list[str]) -> Json:
        tables = self._tables
        match words:
            case ["namespace", "list"]:
                return list(tables.namespaces())
            case ["namespace", "create", namespace]:
                await tables.create_namespace(namespace)
            case ["namespace", "drop", namespace]:
                await tables.drop_namespace(namespace)
            case ["table", "list", *namespace] if len(namespace) <= 1:
                return [_entry(entry) for entry in tables.list(*namespace)]
            case ["table", "dropped"]:
                return [
                    {
                        "table": str(row.name),
                        "folder": row.folder.name,
                        "dropped_at": datetime.fromtimestamp(row.seconds, UTC).isoformat(),
                    }
                    for row in await tables.dropped()
                ]
            case ["table", "info", name]:
                return _info(await tables.info(_table(name)))
            case ["table", "create", name, *pairs]:
                await tables.create(_table(name), settings_from(_pairs(pairs)))
            case ["table", "settings", name, *pairs]:
                info = await tables.info(_table(name))
                if pairs:
                    await tables.change_settings(info.entry.name, settings_from(_pairs(pairs), info.entry.settings))
                    info = await tables.info(info.entry.name)
                return _info(info)
            case ["table", "drop", name]:
                await tables.drop(_table(name))
            case ["table", "reopen", name]:
                await tables.reopen(_table(name))
            case _:
                raise InvalidValue(f"this is no command; there are {COMMANDS}")
        return None


def _table(text: str) -> TableName:
    """NAMESPACE/TABLE, or TABLE in the default namespace; raises InvalidValue."""
    namespace, slash, table = text.rpartition("/")
    if not slash:
        namespace = "default"
    if not NAME.fullmatch(namespace) or not NAME.fullmatch(table):
        raise InvalidValue(f"{text!r} names no table: write TABLE or NAMESPACE/TABLE, each of a-z, 0-9, _ and -")
    return TableName(namespace, table)


def _pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in pairs:
            raise InvalidValue(f"{word!r} is no SETTING=VALUE that stands there once")
        pairs[name] = value
    return pairs


def _entry(entry: TableEntry) -> dict[str, Json]:
    settings: dict[str, Json] = dict(texts_of(entry.settings))
    return {"table": str(entry.name), "state": entry.state, "settings": settings}


def _info(info: TableInfo) -> dict[str, Json]:
    error = info.error
    shown: dict[str, Json] = {
        **_entry(info.entry),
        "effective": {name: str(value) for name, value in asdict(info.effective).items()},
        "status": None if info.status is None else asdict(info.status),
        "error": _error(error) if isinstance(error, KvsdError) else None,
    }
    return shown


def _error(error: KvsdError) -> Json:
    return {"code": error.code, "message": str(error)}
