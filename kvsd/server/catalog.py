"""The namespaces and tables that exist, and each table's settings.

Owns: the file ROOT/catalog, which tables' folders come and go with it, and what was dropped. Synchronous; every change
that must last goes through a Medium. Must not know open tables, nor what is in their files.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from kvsd.errors import ConfigError, Conflict, InvalidValue, ReadOnly, TableNotFound
from kvsd.server.directory import folder_of, folders_in
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings, settings_from, texts_of
from kvsd.table.medium import Medium
from kvsd.types import NAME

MAX_TABLES: Final = 10_000
"""And namespaces: the catalog is written as a whole with each change, and told as a whole in a list."""

_MAGIC: Final = "kvsd catalog 1 "
_HEAD: Final = re.compile(rb"kvsd catalog ([0-9]{1,9}) ([0-9A-F]{8})\n")
_DROPPED: Final = re.compile(rf"({NAME.pattern})\.({NAME.pattern})\.([0-9]{{1,12}})")


class Dropped(NamedTuple):
    """A table that was dropped, whose files are still kept in `folder`."""

    name: TableName
    folder: Path
    seconds: int
    """When, since 1970."""


class Catalog:
    """Loaded by construction, changed by one caller at a time; `namespaces` and `tables` are replaced, never changed.

    A change that raises ReadOnly, since the disk failed, has not happened; where not even that is certain, the table
    that it was about is not there until the next start, which finds what the medium has.
    """

    def __init__(self, root: Path, medium: Medium | None = None, *, now: Callable[[], float] = time.time) -> None:
        """Raises ConfigError where the catalog is damaged or cannot be read."""
        self.root = root
        self.namespaces: frozenset[str] = frozenset({DEFAULT_TABLE.namespace})
        self.tables: Mapping[TableName, TableSettings] = {DEFAULT_TABLE: TableSettings()}
        self._medium = medium or Medium()
        self._now = now
        self._path = root / "catalog"
        self._dropped = root / "dropped"
        self._is_written = False
        self._set_aside_at: dict[TableName, int] = {}
        """When the files of a name were set aside last; seconds since 1970, and one more for each within one."""
        try:
            self._load()
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}; check the disk") from error

    def _load(self) -> None:
        found = folders_in(self.root)
        if not self._path.exists():
            # A data directory from before there was a catalog, or a new one.
            self.tables = {**self.tables, **dict.fromkeys(found, TableSettings())}
            self.namespaces |= {name.namespace for name in found}
            return
        namespaces, tables = _decode(self._path, self._path.read_bytes())
        self.namespaces |= namespaces
        self.tables = {**self.tables, **tables}
        self._is_written = True

    def folder(self, name: TableName) -> Path:
        return folder_of(self.root, name)

    # Changes

    def settle(self) -> list[TableName]:
        """Finish what a crash has interrupted: a folder that is no table's is set aside. Returns whose there were.

        Raises ConfigError where the disk fails.
        """
        orphans = [name for name in folders_in(self.root) if name not in self.tables]
        try:
            for name in orphans:
                self._set_aside(name)
        except OSError as error:
            raise ConfigError(f"cannot set {self.folder(name)} aside: {error}; check the disk") from error
        return orphans

    def create_namespace(self, namespace: str) -> None:
        """Raises Conflict where it exists, InvalidValue for an unfit name, ReadOnly where the disk fails."""
        _check_name(namespace)
        if namespace in self.namespaces:
            raise Conflict(f"namespace {namespace} exists already")
        if len(self.namespaces) >= MAX_TABLES:
            raise Conflict(f"there are {MAX_TABLES} namespaces already, as many as there may be; drop some")
        self._write(self.namespaces | {namespace}, self.tables)

    def drop_namespace(self, namespace: str) -> None:
        """Raises TableNotFound where there is none, Conflict where it has tables, ReadOnly where the disk fails."""
        self._check_namespace(namespace)
        if namespace == DEFAULT_TABLE.namespace:
            raise Conflict(f"namespace {namespace} cannot be dropped")
        count = sum(name.namespace == namespace for name in self.tables)
        if count:
            raise Conflict(f"namespace {namespace} holds {count} tables; drop them first")
        self._write(self.namespaces - {namespace}, self.tables)

    def create_table(self, name: TableName, settings: TableSettings | None = None) -> None:
        """Raises Conflict where it exists, TableNotFound without its namespace, InvalidValue for an unfit name,
        ReadOnly where the disk fails."""
        _check_name(name.table)
        self._check_namespace(name.namespace)
        if name in self.tables:
            raise Conflict(f"table {name} exists already")
        if len(self.tables) >= MAX_TABLES:
            raise Conflict(f"there are {MAX_TABLES} tables already, as many as there may be; drop some")
        folder = self.folder(name)
        try:
            if not self._is_written:
                self._write(self.namespaces, self.tables)  # else the folder alone would make a table
            if folder.exists():
                self._set_aside(name)
            self._medium.make_directory(folder)
            self._medium.sync_parents(folder)
        except OSError as error:
            raise _failed(error) from error
        self._write(self.namespaces, {**self.tables, name: settings or TableSettings()})

    def change_settings(self, name: TableName, settings: TableSettings) -> None:
        """Raises TableNotFound, and ReadOnly where the disk fails."""
        self.check_table(name)
        self._write(self.namespaces, {**self.tables, name: settings})

    def drop_table(self, name: TableName) -> None:
        """Forget the table and set its files aside; nobody may have them open.

        Raises TableNotFound, Conflict where it is default/default, and ReadOnly where the disk fails.
        """
        self.check_droppable(name)
        self._write(self.namespaces, {other: settings for other, settings in self.tables.items() if other != name})
        try:
            if self.folder(name).exists():
                self._set_aside(name)
        except OSError as error:
            raise ReadOnly(
                f"table {name} is dropped, but its files could not be set aside: {error}; the next start will do it"
            ) from error

    def check_table(self, name: TableName) -> None:
        """Raises TableNotFound where there is no such table."""
        if name not in self.tables:
            raise TableNotFound(f"no table {name}")

    def check_droppable(self, name: TableName) -> None:
        """Raises TableNotFound, or Conflict where the table cannot be dropped."""
        self.check_table(name)
        if name == DEFAULT_TABLE:
            raise Conflict(f"table {name} cannot be dropped")

    # What was dropped

    def dropped(self) -> list[Dropped]:
        """Dropped tables whose files are still there, the oldest first."""
        if not self._dropped.exists():
            return []
        found = [
            Dropped(TableName(match[1], match[2]), self._dropped / match[0], int(match[3]))
            for match in map(_DROPPED.fullmatch, self._medium.names(self._dropped))
            if match
        ]
        return sorted(found, key=lambda dropped: dropped.seconds)

    def remove_dropped(self, keep_seconds: int) -> list[Dropped]:
        """Remove the files of tables that were dropped longer ago; what cannot be removed is tried anew next time."""
        due = [dropped for dropped in self.dropped() if dropped.seconds + keep_seconds <= self._now()]
        for dropped in due:
            shutil.rmtree(dropped.folder, ignore_errors=True)
        return [dropped for dropped in due if not dropped.folder.exists()]

    def _set_aside(self, name: TableName) -> None:
        # Behind the last one of this name: to look at each second would be a search through all of them.
        seconds = max(int(self._now()), self._set_aside_at.get(name, 0) + 1)
        while (folder := self._dropped / f"{name.namespace}.{name.table}.{seconds}").exists():
            seconds += 1
        self._set_aside_at[name] = seconds
        self._medium.make_directory(self._dropped)
        self._medium.sync_parents(self._dropped)
        source = self.folder(name)
        self._medium.rename(source, folder)
        self._medium.sync_directory(self._dropped)
        self._medium.sync_directory(source.parent)

    # The file

    def _write(self, namespaces: frozenset[str], tables: Mapping[TableName, TableSettings]) -> None:
        new = self._path.with_name("catalog.new")
        try:
            fd = self._medium.open(new, create=True)
            try:
                self._medium.write(fd, [_encode(namespaces, tables)], 0)
                self._medium.sync(fd)
            finally:
                self._medium.close(fd)
            self._medium.rename(new, self._path)
        except OSError as error:
            raise _failed(error) from error
        try:
            self._medium.sync_directory(self.root)
        except OSError as error:
            # Either may be what the next start finds: what is not in both must not take writes till then.
            self.namespaces &= namespaces
            self.tables = {name: settings for name, settings in self.tables.items() if name in tables}
            raise ReadOnly(
                f"the catalog of tables could not be synced: {error}. Whether the change lasts shows at the next "
                "start; check the disk"
            ) from error
        self.namespaces, self.tables, self._is_written = namespaces, tables, True

    def _check_namespace(self, namespace: str) -> None:
        if namespace not in self.namespaces:
            raise TableNotFound(f"no namespace {namespace}")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidValue(
            "a namespace or table is called by up to 64 of a-z, 0-9, _ and -, and begins with a letter or digit"
        )


def _failed(error: OSError) -> ReadOnly:
    return ReadOnly(f"the catalog of tables could not be changed: {error}. Nothing has changed; check the disk")


def _encode(namespaces: frozenset[str], tables: Mapping[TableName, TableSettings]) -> bytes:
    body = json.dumps(
        {
            "namespaces": sorted(namespaces),
            "tables": {str(name): texts_of(tables[name]) for name in sorted(tables)},
        },
        indent=1,
    ).encode("ascii")
    return f"{_MAGIC}{crc32(body):08X}\n".encode("ascii") + body + b"\n"


def _decode(path: Path, data: bytes) -> tuple[frozenset[str], dict[TableName, TableSettings]]:
    """Raises ConfigError for all that `_encode` does not make."""
    head = _HEAD.match(data)
    if head is not None and int(head[1]) != 1:
        raise ConfigError(f"{path} has format {int(head[1])}, which this kvsd does not know; use a newer one")
    if head is None or f"{crc32(data[head.end() : -1]):08X}".encode("ascii") != head[2] or data[-1:] != b"\n":
        raise _damaged(path, "its checksum does not hold")
    try:
        body = json.loads(data[head.end() :])
        namespaces = frozenset(map(_checked_name, body["namespaces"]))
        tables: dict[TableName, TableSettings] = {}
        for name, texts in body["tables"].items():
            namespace, table = map(_checked_name, name.split("/"))
            tables[TableName(namespace, table)] = settings_from(texts)
            namespaces |= {namespace}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidValue) as error:
        raise _damaged(path, str(error)) from error
    return namespaces, tables


def _checked_name(name: str) -> str:
    _check_name(name)
    return name


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: {why}. Restore it from a backup, or remove it: then every folder below "
        f"{path.with_name('namespaces')} becomes a table with the server's settings"
    )
