"""Calls about namespaces and tables, and how their reports are read.

Owns: the message of each call and the meaning of its reply. Knows nothing of connections, nor of Fail. Names are given
in full: the table that the connection uses may be the one that is yet to be made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from kvsd.client.calls import Call, misfit, read_nothing
from kvsd.errors import KvsdError, ProtocolError, from_wire
from kvsd.protocol import administration
from kvsd.protocol.administration import AdministrationRequest, Pairs, Report
from kvsd.protocol.messages import Message

R = TypeVar("R")

Setting: TypeAlias = str | int | float
Settings: TypeAlias = Mapping[str, Setting]
"""By name, as in the section `kvsd` of the configuration."""

Action: TypeAlias = Literal["start", "pause", "resume", "status"]

MAX_REPORT_BYTES: Final = 8 << 20
"""More than a list of as many tables as a server can have."""
MAX_REPORT_OBJECTS: Final = 100_000
"""Objects and lists in a report: three bytes of it can become seventy of memory."""

_LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999."""


class TableEntry(NamedTuple):
    """A table in a list."""

    namespace: str
    table: str
    state: str
    """closed (it opens when it is asked for), loading, writable, full (deletes only), read-only or unavailable."""
    settings: Settings
    """Those that are not the server's."""


class DroppedTable(NamedTuple):
    """A table that was dropped, whose files are still in `dropped/FOLDER` of the server's data folder."""

    namespace: str
    table: str
    folder: str
    dropped_at: datetime


class TableSettings(NamedTuple):
    """A table's own settings, and what they come to with the server's."""

    own: Settings
    effective: Settings


class TableInfo(NamedTuple):
    """All that is known of a table."""

    namespace: str
    table: str
    state: str
    settings: TableSettings
    status: Settings | None
    """Figures, such as `keys` and `log_bytes`; None where it cannot tell, for the reason in `error`."""
    error: KvsdError | None


class CompactionProgress(NamedTuple):
    """How far the compactions of a table have come that are under way, or were the last."""

    state: str
    """idle, running, paused, or stopped: a failure left what is settled when the table is reopened."""
    segments_done: int
    segments_total: int
    bytes_done: int
    bytes_total: int
    """Of the log's files that are rewritten."""
    reclaimed_bytes: int
    """By how much the log is smaller."""
    error: str
    """What has ended the last one early; empty where nothing has."""


def create(namespace: str, table: str, settings: Settings) -> Call[None]:
    """Conflict where it exists."""
    return _call(administration.TableCreate(namespace, table, _pairs(settings)), read_nothing)


def list_tables(namespace: str | None) -> Call[list[TableEntry]]:
    """None: of all namespaces."""
    return _call(administration.TableList(namespace), _read_list, idempotent=True)


def list_dropped(namespace: str | None) -> Call[list[DroppedTable]]:
    """None: of all namespaces."""

    def read(reply: Message, _seconds: float) -> list[DroppedTable]:
        return [table for table in _read_dropped(reply) if namespace is None or namespace == table.namespace]

    # Those of all, since the namespace may be gone, too.
    return _call(administration.TableList(None), read, idempotent=True)


def info(namespace: str, table: str) -> Call[TableInfo]:
    """Opens the table where it is closed."""
    return _call(administration.TableInfo(namespace, table), _read_info, idempotent=True)


def settings(namespace: str, table: str, changes: Settings) -> Call[TableSettings]:
    """Changes them, and tells what holds then."""
    message = administration.TableSettings(namespace, table, _pairs(changes))
    return _call(message, _read_settings, idempotent=True)


def drop(namespace: str, table: str) -> Call[None]:
    return _call(administration.TableDrop(namespace, table), read_nothing)


def reopen(namespace: str, table: str) -> Call[None]:
    return _call(administration.TableReopen(namespace, table), read_nothing)


def create_namespace(namespace: str) -> Call[None]:
    return _call(administration.NamespaceCreate(namespace), read_nothing)


def list_namespaces() -> Call[list[str]]:
    return _call(administration.NamespaceList(), _read_namespaces, idempotent=True)


def drop_namespace(namespace: str) -> Call[None]:
    return _call(administration.NamespaceDrop(namespace), read_nothing)


def compact(namespace: str, table: str, action: Action) -> Call[CompactionProgress]:
    """Answered with how far it is."""
    message = administration.Compact(namespace, table, action)
    return _call(message, _read_progress, idempotent=True)


def _call(message: AdministrationRequest, read: Callable[[Message, float], R], *, idempotent: bool = False) -> Call[R]:
    """Not `placed`: every message names its table."""
    return Call(message, read, idempotent=idempotent, engine=True, placed=False)


def _pairs(settings: Settings) -> Pairs:
    return tuple((name, str(value)) for name, value in settings.items())


def _document(reply: Message) -> dict[str, Any]:
    """Any: what each reader below takes out of it is checked there."""
    match reply:
        case Report(document):
            if len(document) > MAX_REPORT_BYTES or document.count(b"{") + document.count(b"[") > MAX_REPORT_OBJECTS:
                raise ProtocolError("the server's report is larger than any can be; is it a kvsd server?")
            try:
                content = json.loads(document)
            except (ValueError, RecursionError):
                raise _senseless() from None
            if isinstance(content, dict):
                return content
            raise _senseless()
        case _:
            raise misfit(reply)


def _senseless() -> ProtocolError:
    return ProtocolError("the server's report is none of this request; use a client as new as the server")


def _read_list(reply: Message, _seconds: float) -> list[TableEntry]:
    match _document(reply):
        case {"tables": list(tables)}:
            return [_entry(table) for table in tables]
        case _:
            raise _senseless()


def _entry(content: object) -> TableEntry:
    match content:
        case {"namespace": str(namespace), "table": str(table), "state": str(state), "settings": dict(own)}:
            return TableEntry(namespace, table, state, _figures(own))
        case _:
            raise _senseless()


def _read_dropped(reply: Message) -> list[DroppedTable]:
    match _document(reply):
        case {"dropped": list(dropped)}:
            return [_dropped(table) for table in dropped]
        case _:
            raise _senseless()


def _dropped(content: object) -> DroppedTable:
    match content:
        case {
            "namespace": str(namespace),
            "table": str(table),
            "folder": str(folder),
            "dropped_at": int(seconds),
        } if 0 <= seconds <= _LAST_SECOND:
            return DroppedTable(namespace, table, folder, datetime.fromtimestamp(seconds, UTC))
        case _:
            raise _senseless()


def _read_info(reply: Message, _seconds: float) -> TableInfo:
    content = _document(reply)
    entry = _entry(content)
    match content:
        case {"effective": dict(effective), "status": status, "error": error}:
            return TableInfo(
                entry.namespace,
                entry.table,
                entry.state,
                TableSettings(entry.settings, _figures(effective)),
                None if status is None else _figures(status),
                None if error is None else _error(error),
            )
        case _:
            raise _senseless()


def _error(content: object) -> KvsdError:
    match content:
        case {"code": str(code), "message": str(message)}:
            return from_wire(code, message)
        case _:
            raise _senseless()


def _read_settings(reply: Message, _seconds: float) -> TableSettings:
    match _document(reply):
        case {"settings": dict(own), "effective": dict(effective)}:
            return TableSettings(_figures(own), _figures(effective))
        case _:
            raise _senseless()


def _read_progress(reply: Message, _seconds: float) -> CompactionProgress:
    match _document(reply):
        case {
            "state": str(state),
            "segments_done": int(segments_done),
            "segments_total": int(segments_total),
            "bytes_done": int(bytes_done),
            "bytes_total": int(bytes_total),
            "reclaimed_bytes": int(reclaimed),
            "error": str(error),
        }:
            return CompactionProgress(state, segments_done, segments_total, bytes_done, bytes_total, reclaimed, error)
        case _:
            raise _senseless()


def _read_namespaces(reply: Message, _seconds: float) -> list[str]:
    match _document(reply):
        case {"namespaces": list(names)} if all(isinstance(name, str) for name in names):
            return names
        case _:
            raise _senseless()


def _figures(content: object) -> Settings:
    if isinstance(content, dict) and all(isinstance(value, str | int | float) for value in content.values()):
        return content
    raise _senseless()
