"""A live server against bytes that nobody would send: before login and after it, and instead of a TLS handshake."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsd.protocol import administration
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.messages import Delete, Fail, Get, Hello, Ping, Set, Success, Unknown, Welcome, encode
from tests.server.peers import LOGIN, NULL, PATIENCE_SECONDS, VECTORS

from .target import Target
from .test_silence import client_hello

HELLO = client_hello()

REQUESTS = [
    *(Hello(1, ("f",)), Set(b"\r\n", b"v" * 300), Get(b"\xff"), Delete(b"k"), Set(b"k" * 1025, b""), Unknown(200)),
    *(administration.TableCreate(None, "t", (("cache_bytes", "0"),)), administration.TableDrop(None, "t")),
    *(administration.TableList(None), administration.TableInfo(None, "t"), administration.NamespaceList()),
    *(administration.TableSettings(None, "t", (("fsync", "never"),)), administration.TableReopen(None, None)),
]
MESSAGES = st.sampled_from([*VECTORS.values(), *map(encode, REQUESTS)])
PARTS = st.sampled_from([b"*", b"#", b"$", b"+", b"|", b"T", b"\r\n", b"*3\r\n#\x05", b"$5\r\n", b"9" * 20, b"-1"])


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with some bytes changed, taken out or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 3))
        data[start:end] = draw(st.binary(max_size=3) | PARTS)
    return bytes(data)


SENSELESS = st.lists(MESSAGES | PARTS | st.binary(max_size=60), max_size=12).map(b"".join).flatmap(mutated)
CUTS = st.lists(st.integers(0, 400), max_size=4).map(sorted)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        yield data[start:end]


def answer(target: Target, data: bytes, cuts: list[int]) -> bytes:
    """All that the server says to `data`, up to its close."""
    said = b""
    with socket.create_connection((target.host, target.port), timeout=PATIENCE_SECONDS) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A server that has closed resets the connection where it was not read to the end.
        with contextlib.suppress(ConnectionError):
            for piece in pieces(data, cuts):
                peer.sendall(piece)
            with contextlib.suppress(OSError):  # not connected any more
                peer.shutdown(socket.SHUT_WR)
            while piece := peer.recv(1 << 16):
                said += piece
    return said


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, certificate_dir: Path) -> Iterator[Target]:
    with Target(tmp_path_factory.mktemp("plain"), certificate_dir, tls=False, max_tcp_connections=2) as target:
        yield target


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, certificate_dir: Path) -> Iterator[Target]:
    with Target(tmp_path_factory.mktemp("tls"), certificate_dir, max_tcp_connections=2) as target:
        yield target


@pytest.fixture(scope="module")
def witness(plain: Target) -> Iterator[socket.socket]:
    """Another client, which is served whatever the first one sends."""
    with socket.create_connection((plain.host, plain.port), timeout=PATIENCE_SECONDS) as witness:
        witness.sendall(LOGIN)
        assert witness.recv(100) == NULL
        yield witness


def check(target: Target, witness: socket.socket, login: bool, data: bytes, cuts: list[int]) -> None:
    decoder = Decoder()
    decoder.feed(answer(target, LOGIN + data if login else data, cuts))
    heard = []
    while (message := decoder.next_message()) is not None:
        heard.append(message)
    # Nothing but replies, each whole, and no fault of ours among them.
    assert decoder.buffered_bytes == 0
    assert all(isinstance(message, Success | Fail | Ping | Welcome | administration.Report) for message in heard)
    assert all(message.code != "INTERNAL" for message in heard if isinstance(message, Fail))
    if login:
        assert heard[0] == Success(None)
    witness.sendall(encode(Get(b"witness")))
    assert witness.recv(100) == NULL


@settings(max_examples=150, deadline=None)
@given(login=st.booleans(), data=SENSELESS, cuts=CUTS)
def test_no_bytes_bring_a_session_down(
    plain: Target, witness: socket.socket, login: bool, data: bytes, cuts: list[int]
) -> None:
    check(plain, witness, login, data, cuts)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@given(login=st.booleans(), data=SENSELESS, cuts=CUTS)
def test_no_bytes_of_thousands_bring_a_session_down(
    plain: Target, witness: socket.socket, login: bool, data: bytes, cuts: list[int]
) -> None:
    check(plain, witness, login, data, cuts)


@settings(max_examples=100, deadline=None)
@given(data=mutated(HELLO) | st.binary(max_size=100) | SENSELESS, cuts=CUTS)
def test_no_bytes_bring_the_handshake_down(tls: Target, data: bytes, cuts: list[int]) -> None:
    answer(tls, data, cuts)


def test_a_target_of_garbage_shakes_hands_with_others(tls: Target) -> None:
    for _ in range(4):
        answer(tls, b"\x16\x03\x01\xff\xff" + bytes(100), [])
    assert answer(tls, HELLO, []).startswith(b"\x16\x03")
    assert tls.faults == []
