"""A Fill that cannot fill is not tried again and again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvsd.table.log import Log, LogOptions
from kvsd.table.store import Store
from kvsd.table.work import Fill


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_a_fill_without_room_or_descriptors_is_not_repeated_in_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store(Log(tmp_path, LogOptions(segment_bytes=1 << 20)), cache_bytes=0)
    store.recover()
    store.set(b"k", b"v")
    commit = store.take()
    assert commit is not None
    commit.append.run()
    store.committed(commit)
    fill = store.log.fill()
    assert isinstance(fill, Fill)

    def fails(*_: object) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(store.log.medium, "write" if number == errno.ENOSPC else "open", fails)
    fill.run()
    store.log.filled(fill)
    assert store.log.fill() is None
    store.log.close()
