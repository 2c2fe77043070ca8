"""A table's own settings: how they are written, and what they come to with the server's."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_type_hints

import pytest

from kvsd.config import StorageSettings
from kvsd.errors import InvalidValue
from kvsd.server.table_settings import Effective, TableSettings, settings_from, texts_of
from kvsd.types import Fsync


def test_settings_are_written_as_in_the_configuration() -> None:
    given = settings_from({"fsync": "never", "cache_bytes": "1 KiB"})
    assert given == TableSettings(fsync=Fsync.NEVER, cache_bytes=1024)
    assert settings_from(texts_of(given)) == given
    assert settings_from({"fsync": "default"}, given) == TableSettings(cache_bytes=1024)
    with pytest.raises(InvalidValue, match=r"no setting 'fsnyc'; there are fsync, fsync_interval_ms"):
        settings_from({"fsnyc": "never"})
    with pytest.raises(InvalidValue, match=r"segment_bytes must be from 65536.*or default"):
        settings_from({"segment_bytes": "1"})


def test_every_setting_is_called_and_typed_as_the_servers() -> None:
    effective, storage = get_type_hints(Effective), get_type_hints(StorageSettings)
    assert effective == {name: storage[name] for name in effective}
    assert get_type_hints(TableSettings) == {name: kind | None for name, kind in effective.items()}


def test_what_is_not_a_tables_own_is_the_servers_but_for_its_share_of_the_cache() -> None:
    storage = StorageSettings(segment_bytes=1 << 20, compaction=False)
    own = TableSettings(fsync=Fsync.NEVER, compaction_bytes_per_second=0)
    effective = Effective.of(own, storage, cache_share_bytes=77)
    servers = {name: getattr(storage, name) for name in asdict(effective)}
    assert asdict(effective) == {**servers, "fsync": Fsync.NEVER, "cache_bytes": 77}
    assert Effective.of(TableSettings(cache_bytes=0), storage, cache_share_bytes=77).cache_bytes == 0
