"""The whole daemon: start in order or not at all, stop without losing what is in flight."""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvsd.server
from kvsd import aio
from kvsd.config import Config, User
from kvsd.errors import ConfigError
from kvsd.protocol.messages import Authenticate, Fail, Get, Ping, Set, Success, encode
from kvsd.server import Server, dry_run, listener
from kvsd.server.authentication import Authenticator, Principal, hash_password
from kvsd.server.directory import DataDirectory
from kvsd.server.listener import bind
from kvsd.server.names import TableName
from kvsd.server.server import is_loopback
from kvsd.table import request
from kvsd.table.budget import Budget
from kvsd.table.request import Origin, Request
from kvsd.table.store import Store
from kvsd.types import Fsync
from tests.conftest import Connect, Start
from tests.crash.process import ServerProcess

from .peers import LOGIN, NULL, PASSWORD_HASH, Reports, until

LOOPS = ["asyncio", "uvloop"]

MIB = 1 << 20

MakeConfig = Callable[..., Config]


# Start


async def test_an_embedded_server_tells_where_it_is_and_whom_to_trust(make_config: MakeConfig) -> None:
    async with kvsd.server.run(make_config()) as server:
        assert server.host == "127.0.0.1"
        assert server.port > 0
        async with aio.connect(
            host=server.host, port=server.port, username="kvsduser", password="secret", ca=server.ca_path
        ) as client:
            await client.set("hello", "rust")
            assert await client.get("hello") == b"rust"
            assert server.connections == server.entries == 1
        assert re.fullmatch(
            rf"kvsd ready on 127.0.0.1:{server.port} tls=on data=\S+ "
            r"tables=1 unavailable=0 entries=1 recovered_ms=\d+",
            server.ready_line(server.addresses[0]),
        )


async def test_the_callers_error_ends_an_embedded_server_in_order(make_config: MakeConfig) -> None:
    config = make_config()
    with pytest.raises(ZeroDivisionError):
        async with kvsd.server.run(config):
            1 / 0  # noqa: B018 - raises
    async with kvsd.server.run(config):
        pass


def no_users(folder: Path) -> dict[str, object]:
    return {"users": ()}


def unfit_user(folder: Path) -> dict[str, object]:
    return {"users": (User(username="a", password_hash="nonsense"),)}


def no_certificate(folder: Path) -> dict[str, object]:
    return {"tls_certificate": None}


def missing_certificate(folder: Path) -> dict[str, object]:
    return {"tls_certificate": folder / "none.pem", "tls_key": folder / "none.key"}


def bad_certificate(folder: Path) -> dict[str, object]:
    (folder / "bad.pem").write_text("nonsense")
    return {"tls_certificate": folder / "bad.pem"}


def foreign_data(folder: Path) -> dict[str, object]:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "default.kvsd").touch()
    return {}


def unknown_host(folder: Path) -> dict[str, object]:
    return {"listen_host": "no-such-host.invalid"}


def no_folder(folder: Path) -> dict[str, object]:
    (folder / "file").touch()
    return {"root_dir": folder / "file"}


def damaged_catalog(folder: Path) -> dict[str, object]:
    (folder / "data").mkdir()
    (folder / "data" / "catalog").write_text("nonsense")
    return {}


def half_a_pair(folder: Path) -> dict[str, object]:
    (folder / "half.pem").write_text("nonsense")
    return {"tls_certificate": folder / "half.pem", "tls_key": folder / "half.key", "tls_auto": True}


def foreign_address(folder: Path) -> dict[str, object]:
    return {"listen_host": "192.0.2.1", "allow_insecure": True}


def exposed(folder: Path) -> dict[str, object]:
    return {"listen_host": "0.0.0.0"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (no_users, "no users are configured"),
        (unfit_user, "user 'a': not an Argon2id hash"),
        (no_certificate, "server.tls_certificate is not set"),
        (missing_certificate, "kvsd certs init"),
        (bad_certificate, "holds no certificate in PEM form"),
        (foreign_data, "a data file of the Rust program"),
        (unknown_host, "check server.listen_host"),
        (no_folder, "cannot use the data directory"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_start_that_fails_says_why_and_lets_go_of_everything(
    make_config: MakeConfig, reports: Reports, tmp_path: Path, fault: Callable[[Path], dict[str, object]], words: str
) -> None:
    await refuse_start(make_config(**fault(tmp_path)), reports, words)
    if fault not in {no_folder, foreign_data}:
        with DataDirectory(tmp_path / "data"):
            pass


@pytest.mark.parametrize(
    "fault",
    [
        no_users,
        unfit_user,
        no_certificate,
        missing_certificate,
        bad_certificate,
        foreign_data,
        unknown_host,
        no_folder,
        damaged_catalog,
        half_a_pair,
        foreign_address,
        exposed,
    ],
)
def test_a_dry_run_refuses_all_that_a_start_refuses_and_changes_nothing(
    make_config: MakeConfig, reports: Reports, tmp_path: Path, fault: Callable[[Path], dict[str, object]]
) -> None:
    config = make_config(**fault(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as found:
        dry_run.check(config)
    assert sorted(tmp_path.rglob("*")) == before

    async def start() -> None:
        await Server(config, reports).start()

    with pytest.raises(ConfigError) as refused:
        asyncio.run(start())
    assert str(found.value) == str(refused.value)


def test_a_dry_run_of_a_first_start_makes_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tls_certificate=tmp_path / "c" / "a.pem", tls_key=tmp_path / "c" / "a.key", tls_auto=True)
    assert dry_run.check(config) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_dry_run_does_not_mind_the_running_server(start: Start, make_config: MakeConfig) -> None:
    server = await start()
    assert await asyncio.to_thread(dry_run.check, make_config(listen_port=server.port)) == []


async def refuse_start(config: Config, reports: Reports, words: str) -> None:
    before = set(threading.enumerate())  # a server that other tests share may be running
    with pytest.raises(ConfigError, match=re.escape(words)):
        await Server(config, reports).start()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert set(threading.enumerate()) <= before


async def test_a_port_in_use_refuses_the_start_and_frees_the_directory(
    make_config: MakeConfig, reports: Reports, tmp_path: Path
) -> None:
    [taken] = bind("127.0.0.1", 0, 1)
    with taken:
        config = make_config(listen_port=taken.getsockname()[1])
        await refuse_start(config, reports, "is another server running?")
    async with kvsd.server.run(config):
        pass


async def test_a_directory_in_use_refuses_the_start_and_frees_the_port(
    make_config: MakeConfig, reports: Reports, tmp_path: Path
) -> None:
    [probe] = bind("127.0.0.1", 0, 1)
    probe.close()
    with DataDirectory(tmp_path / "data"):
        await refuse_start(make_config(), reports, "is in use by another kvsd")


async def test_a_failure_after_the_tables_were_opened_closes_them(
    make_config: MakeConfig, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr(Server, "_make_services", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await Server(config, reports).start()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with kvsd.server.run(config):
        pass


def damage(folder: Path) -> None:
    """Flip a bit in the value of the table's first entry, which is followed by others; the start will look at it."""
    for path in folder.glob("*.hint"):
        path.unlink()
    [segment] = [path for path in folder.iterdir() if b"first" in path.read_bytes()]
    data = bytearray(segment.read_bytes())
    data[data.index(b"first")] ^= 1
    segment.write_bytes(data)


async def test_a_damaged_table_answers_corrupt_log_and_does_not_keep_the_server_from_starting(
    start: Start, connect: Connect, make_config: MakeConfig, reports: Reports, tmp_path: Path
) -> None:
    async with kvsd.server.run(make_config(tls=False)) as server:
        peer = await connect(server)
        for value in (b"first", b"second"):
            await peer.say(Set(b"k", value))
            await peer.expect(NULL)
    damage(tmp_path / "data" / "namespaces" / "default" / "default")
    server = await start(tls=False)
    assert "tables=0 unavailable=1 entries=0" in server.ready_line(server.addresses[0])
    assert "damaged" in str(reports.take("a table cannot be opened")["error"])
    peer = await connect(server)
    await peer.say(Get(b"k"), Ping(None, None), Set(b"k", b"v"))
    refused, ping, also_refused = await peer.hear(3)
    assert isinstance(ping, Ping)
    for message in (refused, also_refused):
        assert isinstance(message, Fail)
        assert message.code == "CORRUPT_LOG"


async def test_a_table_that_the_disk_withholds_answers_table_unavailable(
    start: Start, connect: Connect, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Store) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "recover", fail)
        server = await start(tls=False)
    reports.take("a table cannot be opened")
    peer = await connect(server)
    await peer.say(Get(b"k"))
    refused = await peer.hear_one()
    assert isinstance(refused, Fail)
    assert refused.code == "TABLE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("fsync", "words"),
    [(Fsync.INTERVAL, "1000 ms of acknowledged writes"), (Fsync.NEVER, "any number of acknowledged")],
)
async def test_what_a_power_loss_can_take_is_said_at_start(
    start: Start, reports: Reports, fsync: Fsync, words: str
) -> None:
    await start(fsync=fsync)
    assert any(level == "warning" and words in event for level, event, _ in reports.lines)


async def test_a_first_start_makes_certificates_and_says_so(start: Start, reports: Reports, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    server = await start(tls_certificate=folder / "server.pem", tls_key=folder / "server.key", tls_auto=True)
    assert server.ca_path == folder / "ca.pem"
    assert str(folder / "server.pem") in reports.take("made a local CA and a server certificate")["files"]


async def test_the_soft_descriptor_limit_is_raised_to_what_the_connections_need(start: Start) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        server = await start(max_tcp_connections=1_000)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1_000
        assert server._listener.max_connections == 1_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_hard_descriptor_limit_below_the_connections_is_told_and_leaves_some_to_the_tables(
    start: Start, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_000, 1_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    server = await start(max_tcp_connections=5_000)
    assert 100 < server._listener.max_connections < 900
    reports.take("a new data folder")
    reports.take("a new log is begun")
    [(level, event, fields)] = reports.lines
    assert level == "warning"
    assert "raise `ulimit -n`" in event
    assert fields["max_tcp_connections"] == 5_000
    assert fields["max_open_tables"] == 256


# Exposure


SAMPLE = User(username="kvsduser", password_hash=PASSWORD_HASH)
GOOD = User(username="ann", password_hash=hash_password("a good one"))
PLAIN = User(username="bob", password="plain")


@pytest.mark.parametrize(
    ("tls", "users", "words"),
    [
        (False, (GOOD,), "TLS is off"),
        (True, (GOOD, PLAIN), "user bob: its password stands in the configuration as plain text"),
        (True, (GOOD, SAMPLE), "user kvsduser: its password is the published one"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_what_gives_the_data_away_is_not_exposed_to_other_machines(
    make_config: MakeConfig, reports: Reports, host: str, tls: bool, users: tuple[User, ...], words: str
) -> None:
    config = make_config(tls=tls, listen_host=host, users=users)
    await refuse_start(config, reports, words)
    with pytest.raises(ConfigError, match=rf"refusing to listen on {host}.*server.allow_insecure: true"):
        await Server(config, reports).start()


@pytest.mark.parametrize(
    "given",
    [
        {"users": (GOOD,)},
        {"allow_insecure": True},
        {"allow_insecure": True, "tls": False, "users": (PLAIN,)},
        {"listen_host": "127.0.0.1", "tls": False},
        {"listen_host": "localhost", "users": (PLAIN,)},
        {"listen_host": "::1"},
    ],
    ids=str,
)
async def test_what_is_safe_or_asked_for_is_served(start: Start, given: dict[str, object]) -> None:
    server = await start(**{"listen_host": "0.0.0.0", **given})
    with socket.create_connection((server.host, server.port)):
        pass


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.1", False), ("2001:db8::1", False)],
)  # fmt: skip
def test_only_loopback_counts_as_unreachable_from_elsewhere(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# Tables


async def test_a_crash_of_one_table_leaves_the_others_alone(start: Start, tmp_path: Path, reports: Reports) -> None:
    (tmp_path / "data" / "namespaces" / "default" / "other").mkdir(parents=True)
    server = await start()
    await server.tables.load(TableName("default", "other"))
    broken, healthy = server.tables.actors
    assert [broken.name, healthy.name] == ["default/default", "default/other"]

    async def ask(table: object, *operations: request.Operation) -> list[request.Result]:
        asked = Request(operations, Origin(Budget(MIB)), asyncio.get_running_loop().create_future())
        await table.mailbox.put(asked)
        async with asyncio.timeout(10):
            return await asked.future

    broken._store.get = lambda _: 1 / 0  # type: ignore[method-assign]
    [refused] = await ask(broken, request.Get(b"k"))
    assert refused.code == "TABLE_UNAVAILABLE"
    assert await ask(healthy, request.Set(b"k", b"v"), request.Get(b"k")) == [None, b"v"]
    [still_refused] = await ask(broken, request.Set(b"k", b"v"))
    assert still_refused.code == "TABLE_UNAVAILABLE"
    assert reports.take("the table's actor crashed")["table"] == "default/default"


async def test_a_table_that_cannot_be_closed_does_not_keep_the_rest_from_closing(
    make_config: MakeConfig, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    server = Server(config, reports)
    await server.start()
    [table] = server.tables.actors
    close = table._store.log.close

    def fail() -> None:
        close()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(table._store.log, "close", fail)
    await server.stop()
    assert isinstance(reports.take("a table was not closed in order")["exc_info"], OSError)
    async with kvsd.server.run(config):
        pass


# Stop


async def test_what_was_read_before_a_stop_is_answered_and_kept(
    make_config: MakeConfig, reports: Reports, connect: Connect, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tls=tls)
    server = Server(config, reports)
    await server.start()
    peers = [await connect(server) for _ in range(3)]
    for number, peer in enumerate(peers):
        await peer.say(*(Set(b"%d-%d" % (number, n), b"v") for n in range(1_500)))
    sessions = list(server._services.sessions)
    await until(lambda: all(session._behind or session._replies.turns for session in sessions), "nothing was read")
    async with asyncio.timeout(10):
        await server.stop()
    answered = [len(await peer.rest()) // len(NULL) for peer in peers]
    assert all(1_000 <= count <= 1_500 for count in answered)
    async with kvsd.server.run(config) as again:
        assert again.entries == sum(answered)


async def test_silent_clients_do_not_hold_up_a_stop(
    start: Start, connect: Connect, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "SHUTDOWN_TIMEOUT_SECONDS", 0.2)
    server = await start(tls=tls)
    for login in (True, False):
        for _ in range(3):
            peer = await connect(server, login=login)
            peer.writer.transport.pause_reading()
    in_handshake = await connect(server, login=False, tls=False)
    await until(lambda: server.connections == 7, "not accepted")
    async with asyncio.timeout(5):
        await server.stop()
    await in_handshake.expect_end()


async def test_a_client_that_reads_nothing_is_cut_when_the_drain_ends(
    make_config: MakeConfig, reports: Reports, connect: Connect, tls: bool
) -> None:
    server = Server(make_config(tls=tls, drain_timeout_seconds=0.2), reports)
    await server.start()
    peer = await connect(server, receive_bytes=32 << 10)
    peer.writer.transport.pause_reading()
    await peer.say(Set(b"k", bytes(8 * MIB)), *[Get(b"k")] * 3)
    await until(lambda: all(session._replies.is_paused for session in server._services.sessions), "all was sent")
    async with asyncio.timeout(5):
        await server.stop()
    assert reports.take("connections cut at the end of the drain")["connections"] == 1
    assert server._services.budget.held_bytes == 0


async def test_a_slow_reader_still_gets_its_reply_while_the_server_stops(
    make_config: MakeConfig, reports: Reports, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close behind TLS waits a moment only for what is unsent: it must come after the reply."""
    monkeypatch.setattr(listener, "SHUTDOWN_TIMEOUT_SECONDS", 0.5)
    server = Server(make_config(tls=True), reports)
    await server.start()
    peer = await connect(server, receive_bytes=64 << 10)
    reply = encode(Success(bytes(10 * MIB)))
    await peer.say(Set(b"k", bytes(10 * MIB)))
    await peer.expect(NULL)
    await peer.say(Get(b"k"))
    await until(lambda: all(session._replies.is_paused for session in server._services.sessions), "all was sent")
    stopping = asyncio.create_task(server.stop())
    read = b""
    async with asyncio.timeout(20):
        while len(read) < len(reply):
            await asyncio.sleep(0.005)  # this is what the test is about
            data = await peer.reader.read(64 << 10)
            assert data, f"cut after {len(read)} bytes"
            read += data
        await stopping
    assert read == reply


async def test_a_login_under_way_and_what_follows_it_are_answered_by_a_stopping_server(
    make_config: MakeConfig, reports: Reports, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = asyncio.Event()

    async def verify(_: Authenticator, username: str, password: str) -> Principal:
        await may_go_on.wait()
        return Principal(username)

    monkeypatch.setattr(Authenticator, "verify", verify)
    server = Server(make_config(tls=False), reports)
    await server.start()
    peer = await connect(server, login=False)
    await peer.say(LOGIN, Set(b"k", b"v"))
    await until(lambda: any(session._errand for session in server._services.sessions), "no login")
    stopping = asyncio.create_task(server.stop())
    await until(lambda: all(session._ending for session in server._services.sessions), "not draining")
    may_go_on.set()
    assert await peer.rest() == NULL * 2
    async with asyncio.timeout(5):
        await stopping


# Processes


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as process:
        process.start()
        yield process


def send(process: ServerProcess, number: int) -> None:
    assert process._process is not None
    process._process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_drains_and_exits_with_zero(process: ServerProcess, number: int) -> None:
    async def use() -> None:
        async with process.connect() as client:
            await client.set("hello", "rust")
            send(process, number)
            assert await asyncio.to_thread(process._end) == 0

    asyncio.run(use())
    assert (process.logged("draining"), process.logged("stopped")) == (1, 1)
    process.start()
    assert process.ready.entries == 1
    assert process.stop() == 0


def test_a_second_signal_stops_at_once(process: ServerProcess) -> None:
    async def use() -> None:
        async with process.connect() as client:
            await client.set("k", bytes(8 * MIB))
        _, writer = await asyncio.open_connection("127.0.0.1", process.ready.port, limit=1024)
        writer.transport.pause_reading()
        writer.write(encode(Authenticate("u", "p")) + encode(Get(b"k")) * 8)
        send(process, signal.SIGTERM)
        await until(lambda: process.logged("draining"), "no drain")
        send(process, signal.SIGTERM)
        # The drain alone, of a peer that does not read, would take ten seconds.
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(process._end) == 128 + signal.SIGTERM
        writer.transport.abort()

    asyncio.run(use())
    process.start()
    assert process.ready.entries == 1


def test_logs_tell_no_secret_and_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_SERVER_LOG_LEVEL", "debug")
    with ServerProcess(tmp_path) as process:
        process.start()

        async def use() -> None:
            async with process.connect() as client:
                await client.set("the-key", "the-value")
                await client.get("the-key")
            with pytest.raises(kvsd.AuthenticationError):
                await aio.connect(
                    port=process.ready.port, username="u", password="the-wrong-one", disable_tls=True, timeout=10
                )

        asyncio.run(use())
        assert process.stop() == 0
        assert process.logged("connection ended") == 2
        log = process._log.read_text("utf-8")
        for secret in ("the-key", "the-value", "the-wrong-one"):
            assert secret not in log
