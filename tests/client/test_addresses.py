"""Hosts with several addresses, and name servers that do not answer: one limit over all of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvsd
from kvsd.client import addresses
from kvsd.client.settings import ConnectSettings
from kvsd.errors import CannotConnect, ConnectionRefused, Timeout
from kvsd.protocol.messages import Success, encode

from .fake import SHELLS, VECTORS, FakeServer, replay

Settings = Callable[..., ConnectSettings]
Resolve = Callable[..., None]

RUST = encode(Success(b"rust"))


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> type:
    return SHELLS[request.param]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Have names stand for these addresses."""
    real = socket.getaddrinfo

    def be(**hosts: list[tuple[str, int]]) -> None:
        def resolved(host: str, port: int, *rest: object, **named: object) -> list[object]:
            places = hosts.get(host.partition(".")[0], [(host, port)])
            return [found for place in places for found in real(*place, *rest, **named)]  # type: ignore[call-overload] # as given

        monkeypatch.setattr(socket, "getaddrinfo", resolved)

    return be


@pytest.fixture
def hole() -> Iterator[int]:
    """A port that takes no connection and refuses none: its backlog is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("holes", [1, 3])
def test_an_address_that_leads_nowhere_leaves_time_for_the_next(
    shell: type, settings: Settings, resolve: Resolve, hole: int, holes: int
) -> None:
    with FakeServer(replay([VECTORS["get"]], [RUST])) as server:
        resolve(many=[("127.0.0.1", hole)] * holes + [("127.0.0.1", server.port)])
        made = ConnectSettings(
            username="kvsduser",
            password="secret",
            host="many.example",
            port=1,
            disable_tls=True,
            timeout_seconds=10.0,
            connect_timeout_seconds=2.0,
        )
        with shell(made) as client:
            assert client.get("hello") == b"rust"
            assert server.connections == 1


def test_an_address_that_refuses_is_passed_over_at_once(
    shell: type, settings: Settings, resolve: Resolve, free_port: int
) -> None:
    with FakeServer(replay([VECTORS["get"]], [RUST])) as server:
        resolve(many=[("127.0.0.1", free_port), ("127.0.0.1", server.port)])
        made = ConnectSettings(
            username="kvsduser", password="secret", host="many.example", port=1, disable_tls=True, timeout_seconds=10.0
        )
        with shell(made) as client:
            assert client.get("hello") == b"rust"


def test_addresses_that_all_refuse_are_a_refusal(
    shell: type, settings: Settings, resolve: Resolve, free_port: int
) -> None:
    resolve(many=[("127.0.0.1", free_port)] * 2)
    made = ConnectSettings(username="u", password="p", host="many.example", port=1, disable_tls=True)
    with shell(made) as client, pytest.raises(ConnectionRefused, match="is `kvsd serve` running there"):
        client.get("hello")


def test_addresses_that_all_lead_nowhere_are_a_timeout_within_the_limit(
    shell: type, settings: Settings, resolve: Resolve, hole: int
) -> None:
    resolve(many=[("127.0.0.1", hole)] * 3)
    made = ConnectSettings(
        username="u", password="p", host="many.example", port=1, disable_tls=True, connect_timeout_seconds=0.3
    )
    started = time.monotonic()
    with shell(made) as client, pytest.raises(Timeout, match=r"accepted no handshake within 0\.3 s"):
        client.get("hello")
    assert time.monotonic() - started < 5


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A name server that does not answer before the test ends; the names that it was asked for."""
    asked: list[str] = []
    over = threading.Event()
    real = socket.getaddrinfo

    def resolved(host: str, port: int, *rest: object, **named: object) -> object:
        if host != "silent.example" or named.get("flags"):
            return real(host, port, *rest, **named)  # type: ignore[call-overload] # as given
        asked.append(host)
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    yield asked
    over.set()
    for _ in range(1_000):
        if not addresses._under_way:
            break
        threading.Event().wait(0.01)


@pytest.mark.parametrize(("timeout", "connect_timeout"), [(0.2, 10.0), (10.0, 0.2)])
def test_a_silent_name_server_is_bounded_and_asked_once(
    shell: type, silent: list[str], timeout: float, connect_timeout: float
) -> None:
    made = ConnectSettings(
        username="u",
        password="p",
        host="silent.example",
        disable_tls=True,
        timeout_seconds=timeout,
        connect_timeout_seconds=connect_timeout,
    )
    started = time.monotonic()
    with shell(made) as client:
        for _ in range(3):
            with pytest.raises(Timeout) as caught:
                client.get("hello")
            assert not caught.value.may_be_applied
            assert "not resolved" in str(caught.value) or "accepted no handshake within 0.2 s" in str(caught.value)
    assert time.monotonic() - started < 5
    assert silent == ["silent.example"]


@pytest.mark.parametrize("asyncio", [False, True])
def test_the_end_of_the_program_does_not_wait_for_a_name_server(asyncio: bool) -> None:
    blocking = """
        db = kvsd.connect(host="silent.example", username="u", password="p", connect_timeout=0.1)
        try: db.get("k")
        except kvsd.Timeout: print("told")
    """
    with_asyncio = """
        import asyncio, kvsd.aio
        async def main():
            try: await kvsd.aio.connect(host="silent.example", username="u", password="p", connect_timeout=0.1)
            except kvsd.Timeout: print("told")
        asyncio.run(main())
    """
    program = """
        import socket, time, kvsd
        real = socket.getaddrinfo
        def resolved(host, *rest, **named):
            if host == "silent.example" and not named.get("flags"): time.sleep(60)
            return real(host, *rest, **named)
        socket.getaddrinfo = resolved
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program) + textwrap.dedent(with_asyncio if asyncio else blocking)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        cwd=Path(kvsd.__file__).parents[1],
    )
    assert ended.stdout == "told\n"


def test_an_address_needs_no_look_up(shell: type, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(addresses, "start_new_thread", None)
    made = ConnectSettings(username="u", password="p", port=free_port, disable_tls=True)
    with shell(made) as client, pytest.raises(CannotConnect):
        client.get("hello")
