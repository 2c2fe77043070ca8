from __future__ import annotations

import json
import re

import pytest

from kvsd.client.sync import Client

from .conftest import Cli, Running


@pytest.fixture(autouse=True)
def _server(server: Running) -> None:
    """All of these need one."""


def test_one_round_trip_a_line_and_the_summary_apart(cli: Cli) -> None:
    result = cli("ping", "-c", "3")
    assert result.status == 0
    assert re.fullmatch(rb"(\d+\.\d{3} ms\n){3}", result.out)
    assert re.fullmatch(r"3 round trips: min/avg/max [\d.]+/[\d.]+/[\d.]+ ms\n", result.err)


def test_one_is_the_default(cli: Cli) -> None:
    assert cli("ping").out.count(b"\n") == 1


def test_json_has_a_document_a_line(cli: Cli) -> None:
    result = cli("ping", "--count", "2", "--json")
    assert [json.loads(line)["seq"] for line in result.out.splitlines()] == [1, 2]
    assert json.loads(result.err)["summary"]["count"] == 2


def test_an_interrupted_run_still_sums_up(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.001, 0.003])

    def ping(_: Client) -> float:
        if (seconds := next(times, None)) is None:
            raise KeyboardInterrupt
        return seconds

    monkeypatch.setattr(Client, "ping", ping)
    result = cli("ping", "-c", "1000000")
    assert (result.status, result.out) == (130, b"1.000 ms\n3.000 ms\n")
    assert result.err == "2 round trips: min/avg/max 1.000/2.000/3.000 ms\n"


@pytest.mark.parametrize("arguments", [["-c", "0"], ["-c", "x"], ["-i", "-1"], ["-i", "nan"], ["-i", "x"], ["surplus"]])
def test_nonsense_is_refused_before_anything_is_sent(cli: Cli, arguments: list[str]) -> None:
    result = cli("ping", *arguments)
    assert (result.status, result.out) == (2, b"")
    assert "`kvsd ping --help`" in result.err
