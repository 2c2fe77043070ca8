"""A medium that fails, freezes and loses power: the recorder and the replayer of what the log does to its files.

`FaultyMedium` keeps real files and records every change to them as an Operation. `Disk` replays operations and tells
apart what is on the medium from what is only written. Together they make every state that a power cut may leave:

    medium = FaultyMedium(tmp_path / "a")
    ...                                         # drive a log on it
    for count in range(len(medium.operations) + 1):
        disk = medium.disk(count)               # after the first `count` operations
        after = disk.survivors(random.Random(7), tmp_path / "b")    # a FaultyMedium on what the cut left

What may survive, by the rules that `docs/log-format.md` assumes of the medium:

- What was synced survives. Of what was written since, each page survives as any of its versions, by itself.
- A file's size survives as any that it had since its last sync.
- Names (create, rename, link, unlink, mkdir) survive once their directory is synced; of the later ones a prefix
  survives, or any subset. A rename is atomic. Syncing a file does not make its name durable.
- A sync that fails loses any of the pages it should have written, and marks them clean: a later sync that succeeds
  does not bring them back, though they can still be read until the power goes. Each descriptor of the file that was
  open then is told once.

It lies in one way: real systems often keep more, and never keep every adverse combination that this one tries.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import Final

from kvsd.table.medium import Medium

PAGE_BYTES: Final = 512
"""Smaller than real pages, so that small logs have many."""

GATE_SECONDS: Final = 20.0


class Call(StrEnum):
    """What can be recorded, failed, frozen and held."""

    OPEN = auto()
    READ = auto()
    CREATE = auto()
    WRITE = auto()
    SYNC = auto()
    TRUNCATE = auto()
    RENAME = auto()
    LINK = auto()
    UNLINK = auto()
    MAKE_DIRECTORY = auto()
    SYNC_DIRECTORY = auto()


CHANGES: Final = frozenset(Call) - {Call.OPEN, Call.READ}
COUNTED: Final = CHANGES | {Call.OPEN}


@dataclass(frozen=True, slots=True)
class Operation:
    """One change, in the order of execution. Names are relative to the medium's root."""

    call: Call
    file: int = 0
    name: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""
    failed: bool = False
    """A sync that failed; other calls that fail change nothing, and are not recorded."""


class PowerCut(Exception):
    """The call, and every later one, did not happen any more."""


class _File:
    """One file as the page cache has it and as the medium may have it."""

    def __init__(self, content: bytes = b"") -> None:
        self.written = bytearray(content)
        self.durable = bytearray(content)
        self.sizes = [len(content)]
        self.dirty: dict[int, list[bytes]] = {}

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.written):
            self.written.extend(bytes(end - len(self.written)))
            self.sizes.append(end)
        self.written[offset:end] = data
        self._touch(offset, end)

    def truncate(self, size: int) -> None:
        old = len(self.written)
        if size < old:
            self.written[size:] = bytes(old - size)
            self._touch(size, old)
            del self.written[size:]
        else:
            self.written.extend(bytes(size - old))
        self.sizes.append(size)

    def _touch(self, start: int, end: int) -> None:
        for page in range(start // PAGE_BYTES, -(-end // PAGE_BYTES)):
            self.dirty.setdefault(page, []).append(self._page(page))

    def _page(self, page: int) -> bytes:
        return bytes(self.written[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])

    def sync(self) -> None:
        for page in self.dirty:
            self._make_durable(page, self._page(page))
        size = len(self.written)
        del self.durable[size:]
        self.durable.extend(bytes(size - len(self.durable)))
        self.sizes = [size]
        self.dirty.clear()

    def fail_sync(self, rng: random.Random) -> None:
        for page in self.dirty:
            if rng.random() < 0.5:
                self._make_durable(page, self._page(page))
        self.dirty.clear()

    def _make_durable(self, page: int, content: bytes) -> None:
        start = page * PAGE_BYTES
        self.durable.extend(bytes(max(0, start + len(content) - len(self.durable))))
        self.durable[start : start + len(content)] = content

    def survive(self, rng: random.Random, share: float) -> bytes:
        size = rng.choice(self.sizes) if 0 < share < 1 else self.sizes[-1 if share else 0]
        content = self.durable[:size]
        content.extend(bytes(size - len(content)))
        for page, versions in self.dirty.items():
            if rng.random() < share:
                version = versions[-1] if share == 1 else rng.choice(versions)
                start = page * PAGE_BYTES
                version = version[: max(0, size - start)]
                content[start : start + len(version)] = version
        return bytes(content)


@dataclass(frozen=True, slots=True)
class _Rename:
    """A change of names in one directory: some go, some come, all at once."""

    directory: str
    removed: str | None
    added: tuple[str, int] | None


_DIRECTORY: Final = -1


class Disk:
    """The replayer: apply Operations in their order; `survivors` may be asked at any moment, and changes nothing."""

    def __init__(self, files: dict[str, bytes], folders: Sequence[str], seed: int = 0) -> None:
        self._files = {number: _File(content) for number, content in enumerate(files.values())}
        self._names = dict.fromkeys(folders, _DIRECTORY) | {name: number for number, name in enumerate(files)}
        self._pending: list[_Rename] = []
        self._rng = random.Random(seed)

    def apply(self, operation: Operation) -> None:
        name, target, number = operation.name, operation.target, operation.file
        match operation.call:
            case Call.CREATE if number in self._files:
                self._files[number].truncate(0)
            case Call.CREATE:
                self._files[number] = _File()
                self._change(name, None, (name, number))
            case Call.WRITE:
                self._files[number].write(operation.offset, operation.data)
            case Call.TRUNCATE:
                self._files[number].truncate(operation.offset)
            case Call.SYNC if operation.failed:
                self._files[number].fail_sync(self._rng)
            case Call.SYNC:
                self._files[number].sync()
            case Call.RENAME:
                self._change(name, name, (target, number))
            case Call.LINK:
                self._change(target, None, (target, number))
            case Call.UNLINK:
                self._change(name, name, None)
            case Call.MAKE_DIRECTORY:
                self._change(name, None, (name, _DIRECTORY))
            case Call.SYNC_DIRECTORY if not operation.failed:
                for change in self._pending:
                    if change.directory == name:
                        _rename(self._names, change)
                self._pending = [change for change in self._pending if change.directory != name]
            case _:
                pass

    def _change(self, name: str, removed: str | None, added: tuple[str, int] | None) -> None:
        self._pending.append(_Rename(str(Path(name).parent), removed, added))

    def survivors(self, rng: random.Random, root: Path) -> FaultyMedium:
        """Write what a power cut now may leave to the new folder `root`.

        One time in four nothing that was not synced survives, one time in four everything.
        """
        share = rng.choice((0.0, 1.0, 0.5, rng.random()))
        names = dict(self._names)
        changes = self._pending[: round(share * len(self._pending))]
        if 0 < share < 1 and rng.random() < 0.5:
            changes = [change for change in self._pending if rng.random() < share]
        for change in changes:
            _rename(names, change)
        contents: dict[int, bytes] = {}
        root.mkdir(parents=True)
        for name in sorted(names):  # folders come before what is in them; a lost folder takes its files along
            path, number = root / name, names[name]
            if not path.parent.is_dir():
                continue
            if number == _DIRECTORY:
                path.mkdir()
            else:
                if number not in contents:
                    contents[number] = self._files[number].survive(rng, share)
                path.write_bytes(contents[number])
        return FaultyMedium(root)


def _rename(names: dict[str, int], change: _Rename) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.removed is not None and change.added is not None:
        _move_content(names, change.removed, change.added[0])
    if change.added is not None:
        names[change.added[0]] = change.added[1]


def _move_content(names: dict[str, int], old: str, new: str) -> None:
    """A folder takes all that is in it along."""
    for name in [name for name in names if name.startswith(f"{old}/")]:
        names[new + name[len(old) :]] = names.pop(name)


@dataclass(slots=True)
class Gate:
    """Holds the calls of one kind: a worker waits in front of it, for a bounded time."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.reached.set()
        if not self.opened.wait(GATE_SECONDS):
            raise TimeoutError("the gate was never opened")


class FaultyMedium(Medium):
    """The recorder: real files under `root`, nothing really synced, and failures by plan. Safe for threads."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.operations: list[Operation] = []
        self.counts: dict[Call, int] = dict.fromkeys(Call, 0)
        """Calls that succeeded."""
        self.failures = 0
        """Calls that failed as `fail` had planned."""
        self.open_files: dict[int, int] = {}
        """Descriptor → file; empty once nothing has leaked."""
        self.reads_cached = True
        self._room_bytes: int | None = None
        self._found = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        self._folders = [str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_dir()]
        self._names = {name: number for number, name in enumerate(self._found)}
        self._numbers = itertools.count(len(self._found))
        self._untold: set[int] = set()
        self._is_down = False
        self._gates: dict[Call, Gate] = {}
        self._lock = threading.RLock()
        self._plan: Callable[[Call], OSError | PowerCut | None] = lambda _: None

    @property
    def room_bytes(self) -> int | None:
        """What the files may still grow by, or None: enough."""
        return self._room_bytes

    @room_bytes.setter
    def room_bytes(self, room_bytes: int | None) -> None:
        """Under the lock: a worker that is counting down would put its own figure in the place of a test's."""
        with self._lock:
            self._room_bytes = room_bytes

    # Plans

    def fail(
        self, number: int, *, at: int = 1, calls: frozenset[Call] | set[Call] = COUNTED, forever: bool = False
    ) -> None:
        """The `at`-th of `calls` from now on fails with the errno `number`; with `forever` all behind it too."""
        left = at

        def plan(call: Call) -> OSError | None:
            nonlocal left
            if call not in calls:
                return None
            left -= 1
            if left > 0 or (left < 0 and not forever):
                return None
            self.failures += 1
            return OSError(number, os.strerror(number))

        self._plan = plan

    def cut_power(self, *, at: int) -> None:
        """From the `at`-th counted call from now on nothing happens any more."""
        left = at

        def plan(call: Call) -> PowerCut | None:
            nonlocal left
            left -= call in COUNTED
            return PowerCut(f"in {call}") if left <= 0 else None

        self._plan = plan

    def shut_down(self, *, at: int = 1) -> None:
        """As a file system does after an error: from the `at`-th counted call on every call fails, whatever it is."""
        left = at

        def plan(call: Call) -> OSError | None:
            nonlocal left
            left -= call in COUNTED
            self._is_down = self._is_down or left <= 0
            return OSError(errno.EIO, os.strerror(errno.EIO)) if self._is_down else None

        self._plan = plan
        self._is_down = at <= 0

    def _answer(self) -> None:
        if self._is_down:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def heal(self) -> None:
        self._is_down = False
        self._plan = lambda _: None
        self.room_bytes = None

    def hold(self, call: Call) -> Gate:
        """From now on calls of this kind wait until the gate is opened."""
        gate = self._gates[call] = Gate()
        return gate

    def kill(self) -> None:
        """What the end of the process does: all descriptors close, and what was written stays written."""
        for fd in list(self.open_files):
            self.close(fd)
        for folder in list(self._held):
            self.release_folder(folder)
        self.heal()

    # Replay

    def disk(self, count: int | None = None, *, seed: int = 0) -> Disk:
        """The disk after the first `count` operations; `seed` decides what failed syncs have lost."""
        disk = Disk(self._found, self._folders, seed)
        for operation in self.operations[:count]:
            disk.apply(operation)
        return disk

    def prefixes(self) -> Iterator[tuple[int, Disk]]:
        """The disk after 0, 1, 2 … operations; one object that moves on."""
        disk = self.disk(0)
        yield 0, disk
        for count, operation in enumerate(self.operations, 1):
            disk.apply(operation)
            yield count, disk

    def crash(self, seed: int, root: Path) -> FaultyMedium:
        """Cut the power now: this medium is dead, the one that is returned holds what survived."""
        self.kill()
        return self.disk(seed=seed).survivors(random.Random(seed), root)

    # The calls

    @contextlib.contextmanager
    def _call(self, call: Call) -> Iterator[None]:
        gate = self._gates.get(call)
        if gate is not None:
            gate.wait()
        with self._lock:
            error = self._plan(call)
            if error is not None:
                raise error
            yield
            self.counts[call] += 1

    def _record(self, call: Call, **fields: object) -> None:
        self.operations.append(Operation(call, **fields))  # type: ignore[arg-type]

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def open(self, path: Path, *, create: bool = False) -> int:
        with self._call(Call.CREATE if create else Call.OPEN):
            name = self._name(path)
            if create:
                if self.room_bytes is not None and path.exists():
                    self.room_bytes += path.stat().st_size
                number = self._names.setdefault(name, next(self._numbers))
                self._record(Call.CREATE, name=name, file=number)
            fd = super().open(path, create=create)
            self.open_files[fd] = self._names[name]
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            del self.open_files[fd]
            self._untold.discard(fd)
            super().close(fd)

    def write(self, fd: int, buffers: Sequence[bytes], offset: int) -> None:
        data = b"".join(buffers)
        try:
            with self._call(Call.WRITE):
                growth = max(0, offset + len(data) - self.size(fd))
                if self.room_bytes is not None and growth > self.room_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._write(fd, data, offset)
        except OSError:
            # As a real one does: a part is written before the failure shows.
            with self._lock:
                growth = max(0, offset + len(data) - self.size(fd))
                part = len(data) // 2
                if self.room_bytes is not None:
                    part = max(0, len(data) - growth + min(growth, self.room_bytes))
                if part:
                    self._write(fd, data[:part], offset)
            raise

    def _write(self, fd: int, data: bytes, offset: int) -> None:
        if self.room_bytes is not None:
            self.room_bytes -= max(0, offset + len(data) - self.size(fd))
        self._record(Call.WRITE, file=self.open_files[fd], offset=offset, data=data)
        super().write(fd, [data], offset)

    def sync(self, fd: int) -> None:
        with self._lock:
            number = self.open_files[fd]
        try:
            with self._call(Call.SYNC):
                if fd in self._untold:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._record(Call.SYNC, file=number)
        except OSError:
            with self._lock:
                self._record(Call.SYNC, file=number, failed=True)
                if fd not in self._untold:
                    self._untold |= {other for other, file in self.open_files.items() if file == number}
                self._untold.discard(fd)
            raise

    def truncate(self, fd: int, size: int) -> None:
        with self._call(Call.TRUNCATE):
            if self.room_bytes is not None:
                self.room_bytes += max(0, self.size(fd) - size)
            self._record(Call.TRUNCATE, file=self.open_files[fd], offset=size)
            super().truncate(fd, size)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        with self._call(Call.READ):
            return super().read(fd, size, offset)

    def can_read_cached(self, fd: int) -> bool:
        return self.reads_cached

    def read_cached(self, fd: int, size: int, offset: int) -> bytearray | None:
        with self._call(Call.READ):
            data = super().read(fd, size, offset)
        return bytearray(data) if len(data) == size else None

    def rename(self, old: Path, new: Path) -> None:
        with self._call(Call.RENAME):
            name, target = self._name(old), self._name(new)
            if old.is_dir():
                number = _DIRECTORY
                _move_content(self._names, name, target)
            else:
                number = self._names[target] = self._names.pop(name)
            self._record(Call.RENAME, name=name, target=target, file=number)
            super().rename(old, new)

    def link(self, path: Path, new: Path) -> None:
        with self._call(Call.LINK):
            number = self._names[self._name(new)] = self._names[self._name(path)]
            self._record(Call.LINK, name=self._name(path), target=self._name(new), file=number)
            super().link(path, new)

    def unlink(self, path: Path) -> None:
        with self._call(Call.UNLINK):
            if not path.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            if self.room_bytes is not None:
                self.room_bytes += path.stat().st_size
            del self._names[self._name(path)]
            self._record(Call.UNLINK, name=self._name(path))
            super().unlink(path)

    def create_directory(self, path: Path) -> None:
        with self._call(Call.MAKE_DIRECTORY):
            super().create_directory(path)
            self._record(Call.MAKE_DIRECTORY, name=self._name(path))

    def sync_directory(self, path: Path) -> None:
        if path.is_relative_to(self.root):
            with self._call(Call.SYNC_DIRECTORY):
                self._record(Call.SYNC_DIRECTORY, name=self._name(path))

    # Calls that change nothing, and fail where all do

    def size(self, fd: int) -> int:
        self._answer()
        return super().size(fd)

    def exists(self, path: Path) -> bool:
        self._answer()
        return super().exists(path)

    def names(self, path: Path) -> list[str]:
        self._answer()
        return super().names(path)

    def stamp(self, path: Path) -> tuple[int, ...]:
        self._answer()
        return super().stamp(path)

    def check_file(self, path: Path, fd: int, least_bytes: int) -> None:
        self._answer()
        super().check_file(path, fd, least_bytes)

    def check_folder(self, folder: Path) -> None:
        self._answer()
        super().check_folder(folder)

    def has_no_inodes(self, path: Path) -> bool:
        self._answer()
        return super().has_no_inodes(path)

    def free_bytes(self, path: Path) -> int:
        self._answer()
        room_bytes = self.room_bytes  # once: a test may change it meanwhile
        return 1 << 40 if room_bytes is None else room_bytes
