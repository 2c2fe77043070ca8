"""A server says in time that its certificate will not do: at its start, and while it runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvsd.server import certificate_watch
from kvsd.server.certificate_watch import CertificateWatch
from kvsd.server.certificates import create, renew
from tests.conftest import Start

from .peers import Reports, until

NOW = datetime(2030, 1, 1, tzinfo=UTC)
END = NOW + timedelta(days=825)


class Watched:
    """A certificate that is looked at whenever a test says so."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        self.pair = folder / "server.pem", folder / "server.key"
        create(*self.pair, now=NOW)
        self.now = NOW
        self.reports = Reports()
        self.watch = CertificateWatch(
            *self.pair,
            ca=folder / "ca.pem",
            host=host,
            passphrase=None,
            reporter=self.reports,
            now=lambda: self.now,
        )

    async def look(self) -> list[str]:
        self.reports.lines.clear()
        await self.watch.look()
        assert all(level == "warning" for level, _, _ in self.reports.lines)
        return [event for _, event, _ in self.reports.lines]


async def test_a_good_one_is_not_talked_about(tmp_path: Path) -> None:
    assert await Watched(tmp_path).look() == []


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (NOW - timedelta(days=1), "not valid before"),
        (END - timedelta(days=30), "expires in 30 days"),
        (END, "expired on 2032-04-05"),
    ],
)
async def test_what_time_does_to_it_is_told(tmp_path: Path, now: datetime, words: str) -> None:
    watched = Watched(tmp_path)
    watched.now = now
    assert words in (await watched.look())[0]


async def test_a_name_that_is_missing_is_told(tmp_path: Path) -> None:
    [event] = await Watched(tmp_path, host="192.0.2.7").look()
    assert "not valid for 192.0.2.7, only for localhost, 127.0.0.1, ::1; " in event
    assert "`kvsd certs renew --host 192.0.2.7`" in event


async def test_one_that_was_renewed_on_the_disk_is_served_after_a_restart_only(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.now = END - timedelta(days=10)
    renew(*watched.pair, now=watched.now)
    [event] = await watched.look()
    assert event == "certificate: there is another one on the disk than the server uses; restart it"
    watched.now = END
    [event] = await watched.look()
    assert event.startswith("certificate: the one that is served expired on 2032-04-05, and there is another one")


async def test_files_that_are_gone_are_told(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.pair[0].unlink()
    [event] = await watched.look()
    assert event.startswith("certificate: it is served, but cannot be looked at: cannot read")


def test_it_is_looked_at_daily_and_when_it_expires(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.watch.pause_seconds() == 86_400
    watched.now = END - timedelta(hours=3)
    assert watched.watch.pause_seconds() == 3 * 3_600
    watched.now = END + timedelta(days=3)
    assert watched.watch.pause_seconds() == 86_400


async def test_a_server_looks_at_its_start_and_then_again_and_again(
    start: Start, reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_watch, "_DAY", timedelta(milliseconds=1))
    create(tmp_path / "c.pem", tmp_path / "c.key", now=datetime.now(UTC) - timedelta(days=826))
    await start(tls_certificate=tmp_path / "c.pem", tls_key=tmp_path / "c.key", listen_host="127.0.0.1")

    def told() -> int:
        return sum("certificate: expired on " in event for _, event, _ in reports.lines)

    assert told() >= 1
    await until(lambda: told() >= 3, "nobody looks again")
    assert "certificate" in {task.get_name() for task in asyncio.all_tasks()}
