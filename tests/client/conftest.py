"""Certificates for the fake servers, settings that reach them, and an environment without KVSD_ variables."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvsd.client import retries
from kvsd.client.settings import ConnectSettings
from kvsd.server import certificates


@dataclass(frozen=True)
class Authority:
    """A local CA, and the context of a server whose certificate it signed."""

    ca: Path
    server: ssl.SSLContext


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("certs")
    certificates.create(folder / "server.pem", folder / "server.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return Authority(folder / "ca.pem", context)


@pytest.fixture(params=["plain", "tls"])
def context(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext | None:
    """Both kinds of connection."""
    return authority.server if request.param == "tls" else None


@pytest.fixture
def settings(context: ssl.SSLContext | None, authority: Authority) -> Callable[..., ConnectSettings]:
    """Settings of the sample user, for a server on a port."""

    def make(port: int, **others: object) -> ConnectSettings:
        given = {"username": "kvsduser", "password": "secret", "port": port, "disable_tls": context is None}
        if context is not None:
            given["ca"] = authority.ca
        return ConnectSettings(**{**given, "timeout_seconds": 10.0, **others})

    return make


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on which nobody listens; bound, so that nobody will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    for name in [name for name in os.environ if name.startswith("KVSD_")]:
        monkeypatch.delenv(name)
