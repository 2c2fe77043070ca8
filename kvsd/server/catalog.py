"""The namespaces and tables that exist, and each table's settings.

Owns: every change of the file ROOT/catalog, which tables' folders come and go with it, and what of the folders is no
table's. Synchronous; every change that must last goes through a Medium. Must not know open tables, nor what is in their
files.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from kvsd.errors import ConfigError, Conflict, ReadOnly, TableNotFound
from kvsd.server import dropped
from kvsd.server.catalog_file import Contents, Leaving, check_name
from kvsd.server.directory import folder_of, folders_in
from kvsd.server.dropped import Dropped
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings
from kvsd.table.known import KnownLog, traces
from kvsd.table.medium import LostFile, Medium
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, parse_name, table_id_in
from kvsd.table.settlement import begin_log

T = TypeVar("T")

MAX_TABLES: Final = 10_000
"""And namespaces: the catalog is written as a whole with each change, and told as a whole in a list."""

_READING: Final = Medium()
"""The medium for a look at what is there; what must last goes through the catalog's own."""

_ADVICE: Final = (
    "the tables are served as before, and none is created, changed or dropped: put the file back; or, to go on with "
    "what is there, restart the server"
)


class Notice(NamedTuple):
    """Something that a start has found, which somebody should know."""

    event: str
    table: TableName
    path: Path
    error: OSError | None = None


class Catalog:
    """Loaded by construction, changed by one caller at a time, after `settle`; `contents` is replaced, never changed.

    A change that raises ReadOnly, since the disk failed, has not happened; where not even that is certain, the table
    that it was about is not there until the next start, which finds what the medium has.
    """

    def __init__(self, root: Path, medium: Medium | None = None, *, now: Callable[[], float] = time.time) -> None:
        """Raises ConfigError where the catalog is damaged or cannot be read."""
        self.root = root
        self.is_found = True
        """False where there is no file: every folder is a table, with the server's settings."""
        self.is_new = False
        """True where there is no folder either: a data folder is begun."""
        self.contents = Contents()
        self._medium = medium or Medium()
        self._now = now
        self._path = root / "catalog"
        self._dropped = root / "dropped"
        self._is_written = False
        """True while the medium is certain to have `contents`, but for what may be forgotten."""
        self._file = b""
        """The bytes of the file, as it was read or written last."""
        self._stamp: tuple[int, ...] = ()
        """The stamp of the file when it was last seen to have these bytes."""
        self._root_at: tuple[int, int] | None = None
        self._dropped_at: dict[TableName, int] = {}
        """The time when a table of a name was dropped last: seconds since 1970, and one more for each within one."""
        try:
            self._load()
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}; check the disk") from error

    def _load(self) -> None:
        self._root_at = _place_of(self.root)
        if self._path.exists():
            self._file = self._path.read_bytes()
            self.contents = Contents.decode(self._file, self._path)
            self._is_written = True
            return
        found = folders_in(self.root)
        self.is_found, self.is_new = False, not found
        self.contents = replace(
            self.contents,
            namespaces=self.contents.namespaces | {name.namespace for name in found},
            tables={**self.contents.tables, **dict.fromkeys(found, TableSettings())},
        )

    @property
    def namespaces(self) -> frozenset[str]:
        return self.contents.namespaces

    @property
    def tables(self) -> Mapping[TableName, TableSettings]:
        return self.contents.tables

    def folder(self, name: TableName) -> Path:
        return folder_of(self.root, name)

    def known(self, name: TableName) -> KnownLog | None:
        """The least that must be found of the table's log; None where an older kvsd has made it, or nobody yet."""
        return self.contents.logs.get(name)

    def may_begin(self, name: TableName) -> bool:
        """Tell whether the table's folder may still have to be made: all but default/default are made with it."""
        return name == DEFAULT_TABLE and self.known(name) is None

    # Start

    def settle(self) -> list[Notice]:
        """Finish what a crash has interrupted, and tell of what is not as it should be.

        Nothing that nobody has dropped is moved or removed, and what fails is told.
        """
        notices: list[Notice] = []

        def notice(event: str, name: TableName, error: OSError | None = None) -> None:
            notices.append(Notice(event, name, self.folder(name), error))

        for name, leaving in self.contents.leaving.items():
            if name in self.tables or not self._is_leaving(name, leaving):
                self._has_left(name)  # removed meanwhile, or others' files by now
            elif (reason := self._move_away(name, leaving.seconds)) is not None:
                notice("a dropped table's files stay where they are", name, reason)
        found = set(folders_in(self.root))
        for name in sorted(found - set(self.tables) - set(self.contents.leaving)):
            notice("a folder that is no table's stays where it is", name)
        for name in sorted(set(self.tables) - found):
            if not self.may_begin(name):
                notice("a table's folder is missing", name)
        return notices

    def remember(self, logs: Mapping[TableName, KnownLog]) -> None:
        """Note how far these tables' logs had come when they were closed. Raises ReadOnly where the disk fails."""
        logs = {**self.contents.logs, **{name: log for name, log in logs.items() if name in self.tables}}
        if logs != self.contents.logs or not self._is_written:
            self._write(replace(self.contents, logs=logs))

    # Changes

    def create_namespace(self, namespace: str) -> None:
        """Raises Conflict where it exists, InvalidValue for an unfit name, ReadOnly where the disk fails."""
        check_name(namespace)
        if namespace in self.namespaces:
            raise Conflict(f"namespace {namespace} exists already")
        if len(self.namespaces) >= MAX_TABLES:
            raise Conflict(f"there are {MAX_TABLES} namespaces already, as many as there may be; drop some")
        self._write(replace(self.contents, namespaces=self.namespaces | {namespace}))

    def drop_namespace(self, namespace: str) -> None:
        """Raises TableNotFound where there is none, Conflict where it has tables, ReadOnly where the disk fails."""
        self._check_namespace(namespace)
        if namespace == DEFAULT_TABLE.namespace:
            raise Conflict(f"namespace {namespace} cannot be dropped")
        count = sum(name.namespace == namespace for name in self.tables)
        if count:
            raise Conflict(f"namespace {namespace} holds {count} tables; drop them first")
        self._write(replace(self.contents, namespaces=self.namespaces - {namespace}))

    def create_table(self, name: TableName, settings: TableSettings | None = None) -> None:
        """Raises Conflict where it exists or its folder holds files of another, TableNotFound without its namespace,
        InvalidValue for an unfit name, ReadOnly where the disk fails."""
        check_name(name.table)
        self._check_namespace(name.namespace)
        if name in self.tables:
            raise Conflict(f"table {name} exists already")
        if len(self.tables) >= MAX_TABLES:
            raise Conflict(f"there are {MAX_TABLES} tables already, as many as there may be; drop some")
        try:
            self._check_root()
            if not self._is_written:
                self._write(self.contents)  # else the folder alone would make a table, or a drop would not last
            self._make_room(name)
            log = self._begin(name)
        except OSError as error:
            raise _failed(error) from error
        contents = replace(self.contents, leaving=_without(self.contents.leaving, name))
        self._write(
            replace(
                contents,
                tables={**contents.tables, name: settings or TableSettings()},
                logs={**contents.logs, name: log},
            )
        )

    def change_settings(self, name: TableName, settings: TableSettings) -> None:
        """Raises TableNotFound, and ReadOnly where the disk fails."""
        self.check_table(name)
        self._write(replace(self.contents, tables={**self.tables, name: settings}))

    def drop_table(self, name: TableName) -> OSError | None:
        """Forget the table and move its files away; nobody may have them open.

        Returns why they stay where they are, where they do: they are removed there when their time has come, if they
        are the table's own. Raises TableNotFound, Conflict where it is default/default, and ReadOnly where the disk
        fails.
        """
        self.check_droppable(name)
        known, folder, contents = self.known(name), self.folder(name), self.contents
        # Behind the last one of this name: to look at each second would be a search through all of them.
        seconds = self._dropped_at[name] = max(int(self._now()), self._dropped_at.get(name, 0) + 1)
        table_id = table_id_in(_READING, folder)
        is_its_own = known is None or table_id in (None, known.table_id)
        if table_id is not None and is_its_own:
            contents = replace(contents, leaving={**contents.leaving, name: Leaving(table_id, seconds)})
        self._write(replace(contents, tables=_without(contents.tables, name), logs=_without(contents.logs, name)))
        if not is_its_own:
            return OSError(errno.EEXIST, "they are another table's, and are not removed", str(folder))
        return self._move_away(name, seconds) if os.path.lexists(folder) else None

    def check_table(self, name: TableName) -> None:
        """Raises TableNotFound where there is no such table."""
        if name not in self.tables:
            raise TableNotFound(f"no table {name}")

    def check_droppable(self, name: TableName) -> None:
        """Raises TableNotFound, or Conflict where the table cannot be dropped."""
        self.check_table(name)
        if name == DEFAULT_TABLE:
            raise Conflict(f"table {name} cannot be dropped")

    def check(self) -> None:
        """Raises LostFile where the file is not what was read or written last: somebody else had his hands in it."""
        if not self._file:
            return  # there is none yet
        try:
            stamp = self._medium.stamp(self._path)
            if stamp != self._stamp and self._read() != self._file:
                raise LostFile(self._path, "was changed by somebody else")
        except LostFile as error:
            raise LostFile(self._path, error.what, _ADVICE) from error
        self._stamp = stamp

    def _read(self) -> bytes:
        fd = self._medium.open(self._path)
        try:
            return self._medium.read(fd, len(self._file) + 1, 0)
        finally:
            self._medium.close(fd)

    # Folders

    def _begin(self, name: TableName) -> KnownLog:
        """The folder of a new table, with an empty log: what is found without one later has lost it."""
        folder = self.folder(name)
        self._medium.make_directory(folder)
        return KnownLog(begin_log(self._medium, folder, int(self._now() * 1_000_000)), 0)

    def _make_room(self, name: TableName) -> None:
        """Raises Conflict where the folder of a table that is to be made holds files of another."""
        folder, reason = self.folder(name), None
        leaving = self.contents.leaving.get(name)
        if leaving is not None and self._is_leaving(name, leaving):
            reason = self._move_away(name, leaving.seconds)
        if not folder.exists():
            return
        found = traces(self._medium.names(folder))
        # What an interrupted creation has left: the first segment without an entry.
        unused = [path for path in found if parse_name(path) and (folder / path).stat().st_size <= SEGMENT_HEADER_BYTES]
        if found != unused:
            whose = "files of a table that the catalog does not know"
            if reason is not None:
                whose = f"the dropped table's files, which cannot be moved away ({reason})"
            raise Conflict(f"table {name} cannot be made: {folder} holds {whose}; move them to another place first")
        for path in unused:
            self._medium.unlink(folder / path)

    def _move_away(self, name: TableName, seconds: int) -> OSError | None:
        """Move the files of a dropped table; why they stay where they are, where they do."""
        try:
            dropped.move_away(self._medium, self.folder(name), self._dropped, name, seconds)
        except OSError as error:
            return error
        self._has_left(name)
        return None

    def _has_left(self, name: TableName) -> None:
        """The file may keep it till the next change: without the folder it says nothing."""
        self.contents = replace(self.contents, leaving=_without(self.contents.leaving, name))

    def _is_leaving(self, name: TableName, leaving: Leaving) -> bool:
        return table_id_in(_READING, self.folder(name)) == leaving.table_id

    def dropped(self) -> list[Dropped]:
        """Dropped tables whose files are still there, the oldest first."""
        in_place = [
            Dropped(name, self.folder(name), leaving.seconds)
            for name, leaving in self.contents.leaving.items()
            if self._is_leaving(name, leaving)
        ]
        found = dropped.list_dropped(self._medium, self._dropped)
        return sorted(in_place + found, key=lambda found: found.seconds)

    def remove_dropped(
        self, keep_seconds: int, failed: Callable[[Dropped, OSError], None] = lambda *_: None
    ) -> list[Dropped]:
        """Remove the files of tables that were dropped longer ago; returns whose. What could not be removed is told to
        `failed`, and tried anew next time."""
        self._check_root()
        removed: list[Dropped] = []
        for due in self.dropped():
            if due.is_marked and due.seconds + keep_seconds <= self._now():
                try:
                    dropped.remove(due.folder)
                except OSError as error:
                    failed(due, error)
                else:
                    removed.append(due)
        return removed

    # The file

    def _write(self, contents: Contents) -> None:
        new = self._path.with_name("catalog.new")
        try:
            self._check_root()
            self.check()
            file = contents.encode()
            self._medium.write_file(new, file)
            self._medium.rename(new, self._path)
        except OSError as error:
            raise _failed(error) from error
        self._file, self._stamp = file, ()
        try:
            self._medium.sync_directory(self.root)
        except OSError as error:
            # Either may be what the next start finds: what is not in both must not take writes till then.
            self.contents = replace(
                contents,
                namespaces=self.namespaces & contents.namespaces,
                tables={name: settings for name, settings in self.tables.items() if name in contents.tables},
            )
            self._is_written = False
            raise ReadOnly(
                f"the catalog of tables could not be synced: {error}. Whether the change lasts shows at the next "
                "start; check the disk"
            ) from error
        self.contents, self._is_written = contents, True

    def _check_root(self) -> None:
        """Raises OSError where another folder has taken the place of ours: its files are another server's."""
        if _place_of(self.root) != self._root_at:
            raise OSError(errno.ESTALE, "it is not the folder any more that was opened", str(self.root))

    def _check_namespace(self, namespace: str) -> None:
        if namespace not in self.namespaces:
            raise TableNotFound(f"no namespace {namespace}")


def _failed(error: OSError) -> ReadOnly:
    return ReadOnly(f"the catalog of tables could not be changed: {error}. Nothing has changed; check the disk")


def _without(mapping: Mapping[TableName, T], name: TableName) -> Mapping[TableName, T]:
    return {other: value for other, value in mapping.items() if other != name}


def _place_of(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
