"""What the administration messages ask of the tables, and what is answered.

Owns: the documents of the reports, and errors as replies. Must not know connections, nor the order of replies. Today
every principal may do everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final, assert_never

from kvsd.errors import KvsdError, UnexpectedMessage
from kvsd.protocol import administration as messages
from kvsd.protocol.administration import AdministrationRequest, Report
from kvsd.protocol.messages import Fail, Success, encode
from kvsd.server.dropped import Dropped
from kvsd.server.names import TableName
from kvsd.server.table_settings import TableSettings, settings_from
from kvsd.server.tables import TableEntry, TableInfo, Tables
from kvsd.table.request import Compact

_ACTIONS: Final[Mapping[str, Compact]] = {
    "start": Compact("start"),
    "pause": Compact("pause"),
    "resume": Compact("resume"),
    "status": Compact("status"),
}


class Administration:
    """Carries out one message at a time for each connection; a change goes on even if its connection ends."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def carry_out(self, request: AdministrationRequest, here: TableName) -> bytes:
        """The reply to `request` of a session whose table is `here`."""
        try:
            return encode(await self._answer(request, here))
        except KvsdError as error:
            return encode(Fail(error.code, str(error)))

    async def _answer(self, request: AdministrationRequest, here: TableName) -> Success | Report:
        tables = self._tables
        match request:
            case messages.TableList(namespace):
                dropped = [_dropped(entry) for entry in await tables.dropped()]
                return _report(tables=[_entry(entry) for entry in tables.list(namespace)], dropped=dropped)
            case messages.TableInfo(namespace, table):
                return _report(**_info(await tables.info(here.resolve(namespace, table))))
            case messages.TableSettings(namespace, table, changes):
                name = here.resolve(namespace, table)
                own, effective = await tables.change_settings(name, dict(changes))
                return _report(settings=_own(own), effective=asdict(effective))
            case messages.NamespaceList():
                return _report(namespaces=tables.namespaces())
            case messages.TableCreate(namespace, table, settings):
                await tables.create(here.resolve(namespace, table), settings_from(dict(settings)))
            case messages.TableDrop(namespace, table):
                await tables.drop(here.resolve(namespace, table))
            case messages.TableReopen(namespace, table):
                await tables.reopen(here.resolve(namespace, table))
            case messages.NamespaceCreate(namespace):
                await tables.create_namespace(namespace)
            case messages.NamespaceDrop(namespace):
                await tables.drop_namespace(namespace)
            case messages.Compact(namespace, table, action):
                if action not in _ACTIONS:
                    raise UnexpectedMessage(f"{action!r} is no action of compaction; there are {', '.join(_ACTIONS)}")
                return _report(**asdict(await tables.compact(here.resolve(namespace, table), _ACTIONS[action])))
            case _:
                assert_never(request)
        return Success(None)


def _report(**content: object) -> Report:
    return Report(json.dumps(content).encode("ascii"))


def _own(settings: TableSettings) -> dict[str, object]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def _entry(entry: TableEntry) -> dict[str, object]:
    return {**entry.name._asdict(), "state": entry.state, "settings": _own(entry.settings)}


def _dropped(dropped: Dropped) -> dict[str, object]:
    return {**dropped.name._asdict(), "folder": dropped.folder.name, "dropped_at": dropped.seconds}


def _info(info: TableInfo) -> dict[str, object]:
    error = info.error
    return {
        **_entry(info.entry),
        "effective": asdict(info.effective),
        "status": None if info.status is None else asdict(info.status),
        "error": None if error is None else {"code": error.code, "message": str(error)},
    }
