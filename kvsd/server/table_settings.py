"""What a table can have set for itself, and what it comes to with the server's settings.

Owns: which settings there are, and how they are written. Must not know tables, nor where settings are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from kvsd.config import SETTINGS, StorageSettings
from kvsd.errors import InvalidValue
from kvsd.table.compactor import CompactionOptions
from kvsd.types import Fsync


@dataclass(frozen=True, slots=True)
class TableSettings:
    """What a table does differently from the server's section `kvsd`; None: as the server does."""

    fsync: Fsync | None = None
    fsync_interval_ms: int | None = None
    cache_bytes: int | None = None
    segment_bytes: int | None = None
    compaction: bool | None = None
    compaction_bytes_per_second: int | None = None
    compaction_garbage_ratio: float | None = None


_SETTING_NAMES: Final = tuple(field.name for field in fields(TableSettings))


def settings_from(texts: Mapping[str, str], base: TableSettings | None = None) -> TableSettings:
    """`base` with the settings that `texts` gives, written as in the configuration; "default" takes one back.

    Raises InvalidValue for an unknown name and for a value that the server's own setting would refuse.
    """
    changes: dict[str, object] = {}
    for name, text in texts.items():
        if name not in _SETTING_NAMES:
            raise InvalidValue(f"a table has no setting {name!r}; there are {', '.join(_SETTING_NAMES)}")
        try:
            changes[name] = None if text == "default" else SETTINGS[f"kvsd.{name}"].parse(text)
        except ValueError as error:
            raise InvalidValue(f"{name} {error}, or default") from None
    return replace(base or TableSettings(), **changes)  # type: ignore[arg-type] # each is what its parser gives


def texts_of(settings: TableSettings) -> dict[str, str]:
    """The settings that are not the server's, as `settings_from` takes them."""
    return {name: str(value) for name, value in asdict(settings).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Effective:
    """What a table's settings come to, the server's included."""

    fsync: Fsync
    fsync_interval_ms: int
    cache_bytes: int
    segment_bytes: int
    compaction: bool
    compaction_bytes_per_second: int
    compaction_garbage_ratio: float

    @classmethod
    def of(cls, own: TableSettings, storage: StorageSettings, *, cache_share_bytes: int) -> Effective:
        """`own`, and for what is not there the server's `storage`, of whose cache the table gets a share."""
        # Any: the three classes call a setting by one name, and give it one type.
        chosen: dict[str, Any] = {name: getattr(storage, name) for name in _SETTING_NAMES}
        chosen["cache_bytes"] = cache_share_bytes
        chosen.update((name, value) for name, value in asdict(own).items() if value is not None)
        return cls(**chosen)

    @property
    def compaction_options(self) -> CompactionOptions:
        return CompactionOptions(self.compaction, self.compaction_bytes_per_second, self.compaction_garbage_ratio)

    def needs_reopening(self, before: Effective) -> bool:
        """Whether a table that is open with `before` must be opened anew: cache and compaction change at once."""
        return self != replace(
            before,
            cache_bytes=self.cache_bytes,
            compaction=self.compaction,
            compaction_bytes_per_second=self.compaction_bytes_per_second,
            compaction_garbage_ratio=self.compaction_garbage_ratio,
        )
