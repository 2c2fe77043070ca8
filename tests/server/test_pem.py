"""Reading PEM files, and publishing a pair of them so that no interruption leaves half of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kvsd.errors import ConfigError
from kvsd.server.pem import MAX_PEM_BYTES, Pair, load_certificates, load_key, read_pem


class Crash(BaseException):
    """The machine stops here."""


class Machine:
    """Counts the steps that reach the disk, checks them, and stops before step `crash_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.steps = 0
        self.crash_at: int | None = None
        for owner, name in [(os, "open"), (os, "fsync"), (Path, "rename"), (Path, "unlink")]:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, step: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            for key in self.folder.rglob("*.key"):
                assert key.stat().st_mode & 0o777 == 0o600
            if self.steps == self.crash_at:
                raise Crash
            self.steps += 1
            return step(*args, **kwargs)

        return counted

    def run(self, action: Callable[[], object], crash_at: int) -> bool:
        """Whether the action came to its end."""
        self.steps, self.crash_at = 0, crash_at
        try:
            action()
        except Crash:
            return False
        finally:
            self.crash_at = None
        return True


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path / "server.pem", tmp_path / "server.key")


def test_an_interruption_at_any_step_leaves_no_half_pair_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, tmp_path)
    umask = os.umask(0)
    try:
        publish_stops = 0
        published = False
        while not published:
            settle_stops = 0
            settled = False
            while not settled:
                folder = tmp_path / f"{publish_stops}-{settle_stops}"
                folder.mkdir()
                pair = Pair(folder / "server.pem", folder / "server.key")
                published = machine.run(partial(pair.publish, b"key", b"certificate"), publish_stops)
                settled = machine.run(pair.settle, settle_stops)
                pair.settle()
                left = {path.name: path.read_bytes() for path in folder.iterdir()}
                assert left in ({}, {"server.pem": b"certificate", "server.key": b"key"})
                assert left or not published
                settle_stops += 1
            publish_stops += 1
    finally:
        os.umask(umask)
    assert publish_stops > 10


def test_a_staged_certificate_whose_key_is_gone_is_removed(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / ".new-server.pem").write_bytes(b"certificate")
    assert pair.settle() == ()
    assert list(tmp_path.iterdir()) == []


def test_a_staged_certificate_never_replaces_one_that_came_meanwhile(pair: Pair, tmp_path: Path) -> None:
    pair.key.write_bytes(b"mine")
    pair.certificate.write_bytes(b"mine")
    (tmp_path / ".new-server.pem").write_bytes(b"certificate")
    assert pair.settle() == ()
    assert pair.certificate.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.key", "server.pem"]


def test_a_lone_half_names_what_is_missing_and_the_command(pair: Pair) -> None:
    assert not pair.exists()
    pair.certificate.touch()
    with pytest.raises(ConfigError, match=r"server\.key is missing, while .*server\.pem exists.*`kvsd certs init`"):
        pair.exists()
    assert not pair.is_complete()
    pair.certificate.rename(pair.key)
    with pytest.raises(ConfigError, match=r"server\.pem is missing, while .*server\.key exists"):
        pair.exists()
    pair.certificate.symlink_to("nowhere")
    assert pair.exists()
    assert pair.is_complete()


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem: No such file"):
        read_pem(tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_pem(tmp_path)


def test_a_file_too_large_for_pem_is_not_read_into_memory(tmp_path: Path) -> None:
    large = tmp_path / "large.pem"
    large.write_bytes(bytes(MAX_PEM_BYTES))
    assert len(read_pem(large)) == MAX_PEM_BYTES
    large.write_bytes(bytes(MAX_PEM_BYTES + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        read_pem(large)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
    ids=["empty", "binary", "damaged"],
)
def test_rubbish_is_neither_certificate_nor_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no certificate in PEM form"):
        load_certificates(path)
    with pytest.raises(ConfigError, match="no private key in PEM form"):
        load_key(path, None)
