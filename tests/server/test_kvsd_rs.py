"""The Rust program's data file is read entry by entry, and nothing damaged is taken from it."""

import errno
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvsd.errors import ConfigError, CorruptLog
from kvsd.server import offline
from kvsd.server.directory import DataDirectory, folders_in
from kvsd.server.kvsd_rs import RustFile
from kvsd.server.names import DEFAULT_TABLE
from kvsd.table.log import Log, LogOptions
from kvsd.table.store import Store

GOLDEN = Path(__file__).parent.parent / "data" / "golden.kvsd"


def entry(key: bytes, value: bytes, *, state: int = 1, crc: int | None = None) -> bytes:
    head = struct.pack(">QQqB", len(key), len(value), 1_700_000_000_000, state)
    return head + struct.pack(">I", zlib.crc32(head + key + value) if crc is None else crc) + key + value


def entries(data: bytes) -> list[tuple[bytes, bytes, int]]:
    """An independent reading of the format: key, value and state of each entry."""
    found, at = [], 0
    while at < len(data):
        key_bytes = int.from_bytes(data[at : at + 8], "big")
        value_bytes = int.from_bytes(data[at + 8 : at + 16], "big")
        at += 29
        found.append((data[at : at + key_bytes], data[at + key_bytes : at + key_bytes + value_bytes], data[at - 5]))
        at += key_bytes + value_bytes
    return found


@pytest.fixture
def write(tmp_path: Path):
    def written(*parts: bytes) -> Path:
        path = tmp_path / "default.kvsd"
        path.write_bytes(b"".join(parts))
        return path

    return written


def opened(root: Path) -> Store:
    store = Store(Log(root / "namespaces/default/default", LogOptions()), cache_bytes=0)
    store.recover()
    return store


def test_the_golden_file_is_read_entry_by_entry() -> None:
    expected: dict[bytes, bytes] = {}
    all_entries = entries(GOLDEN.read_bytes())
    for key, value, state in all_entries:
        if state == 1:
            expected[key] = value
        else:
            expected.pop(key, None)
    with RustFile(GOLDEN) as file:
        assert dict(file) == expected
        assert (file.entries, len(file)) == (len(all_entries), len(expected)) == (313, 147)
        assert file.deletions == sum(state == 2 for _, _, state in all_entries)
        assert (file.torn_bytes, file.unchecked) == (0, 0)


def test_the_last_entry_of_a_key_wins_and_a_deleted_key_is_not_kept(write) -> None:
    path = write(
        entry(b"a", b"1"), entry(b"b", b"2"), entry(b"a", b"3"), entry(b"b", b"", state=2), entry(b"", b"empty key")
    )
    with RustFile(path) as file:
        assert dict(file) == {b"a": b"3", b"": b"empty key"}


def test_an_empty_value_is_kept(write) -> None:
    with RustFile(write(entry(b"empty", b""))) as file:
        assert dict(file) == {b"empty": b""}


def test_entries_without_a_checksum_are_counted(write) -> None:
    with RustFile(write(entry(b"a", b"1", crc=0), entry(b"b", b"2"))) as file:
        assert (dict(file), file.unchecked) == ({b"a": b"1", b"b": b"2"}, 1)


def test_a_torn_tail_is_reported_and_left_out_wherever_it_is_cut(write) -> None:
    whole, torn = entry(b"a", b"1"), entry(b"key", b"value")
    for size in range(1, len(torn)):
        with RustFile(write(whole, torn[:size])) as file:
            assert (dict(file), file.torn_bytes) == ({b"a": b"1"}, size)


def test_a_flip_of_any_byte_is_seen_or_cuts_off_only_the_tail(write) -> None:
    parts = [entry(b"first", b"value 1"), entry(b"second", b"value 2"), entry(b"third", b"value 3")]
    good = {b"first": b"value 1", b"second": b"value 2", b"third": b"value 3"}
    data = b"".join(parts)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        try:
            with RustFile(write(bytes(damaged))) as file:
                read, torn = dict(file), file.torn_bytes
        except CorruptLog:
            continue
        assert torn, f"byte {at} was flipped unnoticed"
        assert read.items() <= good.items()


@pytest.mark.parametrize("at", range(16))
@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_flipped_bit_of_any_length_is_damage_and_drops_no_key(write, which: int, at: int, bit: int) -> None:
    """A length that leads past the end looks like an interrupted append."""
    parts = [bytearray(entry(b"key %d" % number, bytes(40 + number))) for number in range(3)]
    parts[which][at] ^= 1 << bit
    with pytest.raises(CorruptLog, match=f"damaged at offset {len(parts[0]) * which + which * (which - 1) // 2}"):
        RustFile(write(*parts))


def test_a_tail_without_checksums_behind_it_costs_no_more_than_its_bytes(write) -> None:
    """Plausible headers, each with a body of a megabyte, one behind the other: checking all would take hours."""
    torn = struct.pack(">QQqBI", 1, 10 << 20, 0, 1, 7) + struct.pack(">QQqBI", 9, 1 << 20, 0, 1, 7) * (9 << 15)
    began = time.process_time()
    with pytest.raises(CorruptLog, match="damaged at offset 0"):
        RustFile(write(torn))
    assert time.process_time() - began < 5


def test_a_damaged_length_is_not_taken_for_a_torn_tail(write) -> None:
    damaged = bytearray(entry(b"a", b"1"))
    damaged[8:16] = (10 * 1024 * 1024).to_bytes(8, "big")
    path = write(bytes(damaged))
    with path.open("ab") as file:
        file.truncate(12 * 1024 * 1024)
    with pytest.raises(CorruptLog, match="damaged at offset 0"):
        RustFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.kvsd"):
        RustFile(tmp_path / "nowhere.kvsd")


def test_an_import_is_there_after_a_reopen_and_leaves_a_sealed_log(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with RustFile(GOLDEN) as file:
        assert offline.write(root, file, LogOptions(segment_bytes=64 << 10)) == 147
        expected = dict(file)
    store = opened(root)
    try:
        assert len(store) == 147
        assert {key: store.get(key) for key in expected} == expected
        assert not store.log.torn_tail
    finally:
        store.log.close()


def test_an_import_refuses_a_directory_in_use(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "data"), pytest.raises(ConfigError, match="in use by another kvsd"):
        offline.write(tmp_path / "data", [(b"a", b"1")])


def test_an_error_of_the_disk_is_none_of_the_configuration(tmp_path: Path) -> None:
    def values() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        offline.write(tmp_path, values())
    with DataDirectory(tmp_path):
        pass


def test_an_import_goes_to_the_default_table(tmp_path: Path) -> None:
    offline.write(tmp_path, [(b"a", b"1")])
    with DataDirectory(tmp_path) as directory:
        assert folders_in(directory.root) == [DEFAULT_TABLE]
