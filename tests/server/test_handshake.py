"""Handshakes that fail: cheap for the server, with an alert for the client and one line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path

import pytest

from kvsd.server import listener
from kvsd.server.reporting import LINES_A_MINUTE
from kvsd.server.tls import server_context

from ..conftest import Start
from . import hellos
from .hellos import client_hello, ffdhe_hello
from .peers import PATIENCE_SECONDS, Peer, Reports, until

LOOPS = ["asyncio", "uvloop"]

FAILED = "TLS handshake failed"
MAX_MILLISECONDS = 5.0
"""Of the processor, for a refusal; 0.1 as measured."""

STRANGERS: dict[str, tuple[bytes, bytes, str]] = {
    "ffdhe8192": (ffdhe_hello(8192), b"\x02\x28", "no suitable key share"),
    "ffdhe2048": (ffdhe_hello(2048), b"\x02\x28", "no suitable key share"),
    "only a curve that we do not have": (client_hello(groups=[hellos.P384]), b"\x02\x28", "no suitable key share"),
    "only TLS 1.1": (client_hello(versions=[0x0302]), b"\x02\x46", "unsupported protocol"),
    "only CBC": (
        client_hello(versions=[hellos.TLS_1_2], ciphers=[hellos.ECDSA_AES_128_CBC]),
        b"\x02\x28",
        "no shared cipher",
    ),
    "a web browser": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", "http request"),
    "a plain kvsd client": (b"*3\r\n#\x02+kvsduser\r\n+secret\r\n", b"", "wrong version number"),
    "a damaged message": (ffdhe_hello(2048)[:9] + bytes(600), b"\x02", ""),
}
"""What they send, the alert that they get (level and kind; OpenSSL has none for some), and the reason in the log."""


@pytest.mark.parametrize("bits", hellos.FFDHE)
def test_a_hello_with_a_finite_field_alone_is_refused_cheaply(certificate_dir: Path, bits: int) -> None:
    """With OpenSSL's own list of groups: 230 ms for the largest."""
    context = server_context(certificate_dir / "server.pem", certificate_dir / "server.key")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(ffdhe_hello(bits))
    end = context.wrap_bio(incoming, outgoing, server_side=True)
    started = time.thread_time()
    with pytest.raises(ssl.SSLError, match="NO_SUITABLE_KEY_SHARE"):
        end.do_handshake()
    assert (time.thread_time() - started) * 1000 < MAX_MILLISECONDS
    assert outgoing.read() == b"\x15\x03\x03\x00\x02\x02\x28"


def test_a_hello_that_offers_a_finite_field_first_gets_a_curve(certificate_dir: Path) -> None:
    context = server_context(certificate_dir / "server.pem", certificate_dir / "server.key")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    share = (hellos.FFDHE[8192], bytes(1022) + b"\x12\x34")
    incoming.write(client_hello(groups=[share[0], hellos.P256], shares=[share]))
    end = context.wrap_bio(incoming, outgoing, server_side=True)
    started = time.thread_time()
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    assert (time.thread_time() - started) * 1000 < MAX_MILLISECONDS
    assert outgoing.read()[:1] == b"\x16"  # it is asked for a share of the curve


def test_no_cipher_without_forward_secrecy_or_with_cbc_is_accepted(certificate_dir: Path) -> None:
    context = server_context(certificate_dir / "server.pem", certificate_dir / "server.key")
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher
        assert cipher["kea"] in {"kx-any", "kx-ecdhe"}, cipher


@pytest.mark.parametrize("more", [b"", bytes(600_000)], ids=["", "and goes on sending"])
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_stranger_gets_its_alert_and_one_line(
    start: Start, reports: Reports, stranger: str, more: bytes
) -> None:
    data, alert, reason = STRANGERS[stranger]
    server = await start(tls=True)
    peer = await Peer.connect(server, login=False, tls=False)
    saying = asyncio.create_task(peer.say(data + more))
    if alert:
        record = await peer.read(7)
        assert (record[:1], record[3:5]) == (b"\x15", b"\0\x02")
        assert record[5:].startswith(alert)
    with contextlib.suppress(ConnectionError):
        await saying
        peer.end()
    assert await peer.rest() == b""
    await until(lambda: server.connections == 0, "the permit is not back")
    line = reports.take(FAILED)
    assert line["peer"] == "{}:{}".format(*peer.writer.get_extra_info("sockname"))
    assert reason in str(line["error"])
    await peer.close()


async def test_a_refused_stranger_that_does_not_close_is_cut(start: Start) -> None:
    server = await start(tls=True)
    peer = await Peer.connect(server, login=False, tls=False)
    await peer.say(ffdhe_hello(2048))
    assert await peer.rest() == b"\x15\x03\x03\x00\x02\x02\x28"
    await until(lambda: server.connections == 0, "the permit is not back")
    await peer.close()


async def test_a_client_that_refuses_our_certificate_is_named_with_its_reason(start: Start, reports: Reports) -> None:
    server = await start(tls=True)

    def connect() -> None:
        # Not the loop's client: it closes without its alert.
        with (
            socket.create_connection((server.host, server.port)) as raw,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")

    await asyncio.get_running_loop().run_in_executor(None, connect)
    await until(lambda: reports.count(FAILED), "nothing is said")
    assert reports.take(FAILED)["error"] == "tlsv1 alert unknown ca"


async def test_a_silent_handshake_leaves_a_line(
    start: Start, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_SECONDS", 0.3)
    server = await start(tls=True)
    peer = await Peer.connect(server, login=False, tls=False)
    await until(lambda: reports.count(FAILED), "nothing is said")
    assert reports.take(FAILED)["error"] == "nothing was heard for too long"
    await peer.close()


async def test_who_only_looks_whether_the_port_is_open_leaves_no_line(start: Start, reports: Reports) -> None:
    server = await start(tls=True)
    peer = await Peer.connect(server, login=False, tls=False)
    await until(lambda: server.connections, "not accepted")
    await peer.close()
    await until(lambda: server.connections == 0, "not ended")
    assert [line for line in reports.lines if line[0] != "debug" and "peer" in line[2]] == []


async def test_refused_handshakes_do_not_fill_the_log(start: Start, reports: Reports) -> None:
    server = await start(tls=True)
    count = LINES_A_MINUTE + 7
    for _ in range(count):
        peer = await Peer.connect(server, login=False, tls=False)
        await peer.say(ffdhe_hello(2048))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await peer.reader.readexactly(7)
        await peer.close()
        await until(lambda: server.connections == 0, "the permit is not back")
    assert reports.count(FAILED) == LINES_A_MINUTE
    await server.stop()
    assert reports.take("lines were left out") == {"about": FAILED, "count": 7}
