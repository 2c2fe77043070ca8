"""What a client demands of a server's certificate, and what it says where it does not get that."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvsd.client import failures
from kvsd.client.settings import ConnectSettings
from kvsd.client.tls import client_context
from kvsd.errors import ConfigError, ConnectionLost, KvsdError, Timeout
from kvsd.protocol.messages import Fail, encode
from kvsd.server import certificates

from .fake import SHELLS, FakeServer, Peer


def settings_for(ca: Path | None, **others: object) -> ConnectSettings:
    return ConnectSettings(**{"username": "u", "password": "p", "ca": ca, "timeout_seconds": 5.0, **others})


def make(folder: Path, *hosts: str, now: datetime | None = None) -> tuple[Path, ssl.SSLContext]:
    certificates.create(folder / "server.pem", folder / "server.key", hosts, now=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return folder / "ca.pem", context


def shake_hands(settings: ConnectSettings, server: ssl.SSLContext) -> ssl.SSLObject:
    """A handshake in memory; raises what the client would report."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(settings)
    assert context is not None
    ours = context.wrap_bio(to_client, to_server, server_hostname=settings.host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (ours, theirs) * 3:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except OSError as error:
        raise failures.cannot_open(settings, error) from error
    return ours


def test_a_certificate_of_the_given_ca_is_trusted_by_strict_rules(tmp_path: Path) -> None:
    ca, server = make(tmp_path, "db.example")
    for host in ("localhost", "127.0.0.1", "::1", "db.example"):
        assert shake_hands(settings_for(ca, host=host), server).version() == "TLSv1.3"
    context = client_context(settings_for(ca))
    assert context is not None
    assert context.verify_flags & ssl.VERIFY_X509_STRICT


def test_tls_1_2_is_the_oldest_that_is_spoken(tmp_path: Path) -> None:
    ca, server = make(tmp_path)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(settings_for(ca), server).version() == "TLSv1.2"
    context = client_context(settings_for(ca))
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_servers_own_certificate_can_be_pinned(tmp_path: Path) -> None:
    _, server = make(tmp_path)
    shake_hands(settings_for(tmp_path / "server.pem"), server)


def test_an_unknown_authority_is_named_with_the_file_and_the_option(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other, _ = make(tmp_path / "other")
    _, server = make(tmp_path)
    with pytest.raises(ConnectionLost, match=rf"not signed by the CA file {other}; .*--ca FILE \(ca=\)"):
        shake_hands(settings_for(other), server)
    with pytest.raises(ConnectionLost, match="not signed by any authority that this system trusts"):
        shake_hands(settings_for(None), server)


@pytest.mark.parametrize("host", ["elsewhere.test", "127.0.0.9"])
def test_a_certificate_for_another_host_is_refused(tmp_path: Path, host: str) -> None:
    ca, server = make(tmp_path)
    with pytest.raises(ConnectionLost, match=f"is not made out to {host}"):
        shake_hands(settings_for(ca, host=host), server)


@pytest.mark.parametrize(("days", "words"), [(-1000, "has expired"), (30, "is not valid yet")])
def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path, days: int, words: str) -> None:
    ca, server = make(tmp_path, now=datetime.now(UTC) + timedelta(days=days))
    with pytest.raises(ConnectionLost, match=words):
        shake_hands(settings_for(ca), server)


def test_insecure_accepts_anybody_without_looking_at_the_ca_file(tmp_path: Path) -> None:
    _, server = make(tmp_path)
    shake_hands(settings_for(tmp_path / "absent.pem", host="elsewhere.test", insecure=True), server)


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_an_unfit_ca_file_is_a_config_error_that_names_it(tmp_path: Path, content: str | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    with pytest.raises(ConfigError, match=f"CA file {ca}.*--ca"):
        client_context(settings_for(ca))


def test_there_is_no_context_where_tls_is_off(tmp_path: Path) -> None:
    assert client_context(settings_for(tmp_path / "absent.pem", disable_tls=True)) is None


def tells(shell: type, settings: ConnectSettings) -> KvsdError:
    with shell(settings) as client, pytest.raises(KvsdError) as caught:
        client.set("hello", "the value")
    return caught.value


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> type:
    return SHELLS[request.param]


def test_nothing_is_sent_to_a_server_that_was_not_verified(shell: type, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other, _ = make(tmp_path / "other")
    _, context = make(tmp_path)
    met: list[Peer] = []
    with FakeServer(met.append, context=context) as server:
        error = tells(shell, settings_for(other, port=server.port))
    assert isinstance(error, ConnectionLost)
    assert not error.may_be_applied
    assert "was not signed by" in str(error)
    assert server.connections == 1
    assert met == []


@pytest.mark.parametrize("answer", [encode(Fail("UNDEFINED", "no message")), b""])
def test_a_server_without_tls_is_told_from_one_that_is_not_trusted(
    shell: type, tmp_path: Path, answer: bytes, make_plain: Callable[[bytes], Callable[[Peer], None]]
) -> None:
    ca, _ = make(tmp_path)
    with FakeServer(make_plain(answer)) as server:
        error = tells(shell, settings_for(ca, port=server.port))
    assert isinstance(error, ConnectionLost)
    assert "; check host and port against the line `kvsd ready on ...`" in str(error)
    # Whoever listens at a wrong port would be sent the password next.
    assert "disable" not in str(error)


@pytest.fixture
def make_plain() -> Callable[[bytes], Callable[[Peer], None]]:
    def with_answer(answer: bytes) -> Callable[[Peer], None]:
        def script(peer: Peer) -> None:
            assert peer.socket.recv(65_536).startswith(b"\x16\x03")
            peer.send(answer)

        return script

    return with_answer


@pytest.mark.parametrize("answer", [b"\x15\x03\x01\x00\x02\x02\x46", b""])
def test_a_plain_client_at_a_tls_port_is_told_so(shell: type, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.socket.recv(65_536)
        peer.send(answer)

    with FakeServer(script) as server:
        error = tells(shell, settings_for(None, port=server.port, disable_tls=True))
    assert isinstance(error, ConnectionLost)
    assert "speaks TLS" in str(error)
    assert "leave out --disable-tls" in str(error)


def test_a_handshake_that_is_never_answered_may_be_a_full_server(shell: type, tmp_path: Path) -> None:
    ca, _ = make(tmp_path)
    with FakeServer(Peer.wait_for_end) as server:
        error = tells(shell, settings_for(ca, port=server.port, connect_timeout_seconds=0.1))
    assert isinstance(error, Timeout)
    assert "accepted no handshake within 0.1 s; it may be full (server.max_tcp_connections)" in str(error)
    assert not error.may_be_applied
