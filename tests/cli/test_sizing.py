from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kvsd.config import StorageSettings
from kvsd.table import sizing

from .conftest import Cli

MANUAL = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_manual_shows_what_the_command_prints(cli: Cli) -> None:
    [(command, shown)] = re.findall(r"```console\n\$ kvsd (sizing .*)\n((?:.*\n)*?)```", MANUAL.read_text("utf-8"))
    result = cli(*shlex.split(command))
    assert (result.status, result.out.decode()) == (0, shown)


def test_the_figures_are_those_of_the_settings_that_hold(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_KVSD_SEGMENT_BYTES", "1MiB")
    monkeypatch.setenv("KVSD_KVSD_CACHE_BYTES", "12345")
    monkeypatch.setenv("KVSD_KVSD_COMPACTION_GARBAGE_RATIO", "0.25")
    told = cli("sizing", "--keys", "1.5M", "--key-bytes", "30", "--value-bytes", "1KiB", "--json").json
    memory = sizing.memory(1_500_000, 30)
    disk = sizing.disk(1_500_000, 30, 1_024, segment_bytes=1 << 20, garbage=0.25)
    parts = {
        "memory": {"keys": memory.peak, "order": memory.order, "cache": 12_345, "requests": 256 << 20},
        "disk": disk._asdict(),
    }
    parts["memory"]["server"] = told["memory"]["server"]  # type: ignore[index]
    assert told == {part: {**figures, "total": sum(figures.values())} for part, figures in parts.items()}


@pytest.mark.parametrize("compaction", [True, False])
def test_garbage_without_end_is_told_where_nothing_compacts(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, compaction: bool
) -> None:
    monkeypatch.setenv("KVSD_KVSD_COMPACTION", str(compaction))
    assert ("kvsd.compaction is off" in cli("sizing", "--keys", "1k").err) == (not compaction)


def test_a_ratio_of_all_is_no_division_by_zero(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_KVSD_COMPACTION_GARBAGE_RATIO", "1")
    assert cli("sizing", "--keys", "1").status == 0


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("--keys", text) for text in ("0", "-1", "ten", "1T", "0.1", "9999G", "1e6", "")),
        *(("--key-bytes", text) for text in ("0", "64KiB", "x")),
        *(("--value-bytes", text) for text in ("-1", "2GiB", "x")),
        *(("--garbage", text) for text in ("96%", "100%", "0.5", "-1%", "x")),
    ],
)
def test_what_is_no_size_is_refused_by_its_option(cli: Cli, option: str, text: str) -> None:
    arguments = {"--keys": "1"} | {option: text}
    result = cli("sizing", *(f"{name}={value}" for name, value in arguments.items()))
    assert (result.status, result.out) == (2, b"")
    assert result.err.startswith(f"error: {option} must be ")


def test_keys_may_be_counted_in_thousands(cli: Cli) -> None:
    for text, keys in (("1_000", 1_000), ("2k", 2_000), ("1.5M", 1_500_000), ("1g", 10**9)):
        told = cli("sizing", "--keys", text, "--json").json
        assert told["memory"]["keys"] == sizing.memory(keys, 20).peak  # type: ignore[index]


def test_defaults_are_those_of_a_small_entry(cli: Cli) -> None:
    told = cli("sizing", "--keys", "1000", "--json").json
    defaults = StorageSettings(root_dir=Path())
    disk = sizing.disk(1_000, 20, 100, segment_bytes=defaults.segment_bytes, garbage=0.5)
    assert told["disk"]["entries"] == disk.entries  # type: ignore[index]
