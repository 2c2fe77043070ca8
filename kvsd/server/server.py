"""The whole daemon: what is started in which order, and how it stops.

Owns: start-up, the ready state, draining, signals. Must not know messages, nor what is in a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import math
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from kvsd.config import Config
from kvsd.errors import ConfigError
from kvsd.protocol.decoder import Limits
from kvsd.server.administration import Administration
from kvsd.server.authentication import Authenticator, insecure_users
from kvsd.server.catalog import Catalog
from kvsd.server.clock import WallClock
from kvsd.server.descriptors import DescriptorWatch, TableShare, share_of_tables
from kvsd.server.directory import DataDirectory
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.listener import Listener, bind
from kvsd.server.names import DEFAULT_TABLE
from kvsd.server.reporting import make_reporter
from kvsd.server.session import Services, Session
from kvsd.server.tables import Tables
from kvsd.server.timer import patience
from kvsd.server.tls import ensure_certificates, server_context
from kvsd.table.budget import Budget
from kvsd.table.medium import Medium
from kvsd.table.open_segments import OpenSegments
from kvsd.table.threads import LIMIT as THREADS
from kvsd.table.threads import Threads
from kvsd.table.workers import Pools
from kvsd.types import Address, Fsync

_COMMIT_THREADS: Final = 32
_READ_THREADS: Final = 4
_SPARE_DESCRIPTORS: Final = 256
"""Kept from connections for segments to come: a log that finds none for its next file takes no more writes."""

_DISK_GRACE_SECONDS: Final = 5.0
"""Beyond the drain, for the last syncs. Everything acknowledged is on disk before."""

_FULL_COLLECTION_EVERY: Final = 10_000
"""Collections of the middle generation, of which each stands for thousands of new objects."""

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


class Server:
    """One running daemon: `start`, then `stop`. Use `run`, which sees to both."""

    def __init__(self, config: Config, reporter: FilteringBoundLogger) -> None:
        self.config = config
        self.ca_path: Path | None = None
        """The CA that clients should trust, where it lies beside the server's certificate."""
        self.recovered_ms = 0
        self.dispatcher = Dispatcher()
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._owned = contextlib.AsyncExitStack()
        self._sockets: list[socket.socket] = []
        self.tables: Tables
        self._services: Services
        self._listener: Listener

    @property
    def addresses(self) -> list[Address]:
        return [Address(*listening.getsockname()[:2]) for listening in self._sockets]

    @property
    def host(self) -> str:
        return self.addresses[0].host

    @property
    def port(self) -> int:
        return self.addresses[0].port

    @property
    def entries(self) -> int:
        """Keys that have a value, in all open tables."""
        return self.tables.entries

    @property
    def connections(self) -> int:
        """Open connections, those in their handshake included."""
        return len(self._listener)

    def ready_line(self, address: Address) -> str:
        """What `kvsd serve` prints for each address once it can be connected to."""
        tls = "off" if self.config.server.disable_tls else "on"
        return (
            f"kvsd ready on {address} tls={tls} data={self.config.storage.root_dir} "
            f"tables={len(self.tables) - self.tables.unavailable} unavailable={self.tables.unavailable} "
            f"entries={self.entries} recovered_ms={self.recovered_ms}"
        )

    # Start

    async def start(self) -> None:
        """Check, lock, listen, and recover `default/default`, in this order.

        Raises ConfigError, and has let go of everything then.
        """
        try:
            self._check_exposure()
            # Twice: for what is open when the connections come, and for what comes later.
            descriptors = _raise_descriptor_limit(
                self.config.server.max_tcp_connections + self._spare_descriptors + _SPARE_DESCRIPTORS
            )
            directory = self._owned.enter_context(DataDirectory(self.config.storage.root_dir, Medium()))
            context = self._tls_context()
            authenticator = Authenticator.from_users(self.config.storage.users)
            self._owned.push_async_callback(authenticator.close)
            self._sockets = bind(
                self.config.server.listen_host, self.config.server.listen_port, self.config.server.backlog
            )
            for listening in self._sockets:
                self._owned.callback(listening.close)
            connections = self._affordable_connections(descriptors)
            self.tables = self._make_tables(directory, self._share_of_tables(descriptors, connections))
            self._owned.push_async_callback(self.tables.stop)
            self._services = self._make_services(authenticator)
            self._listener = Listener(
                self._sockets,
                partial(Session, self._services),
                max_connections=connections,
                max_unauthenticated_per_address=self.config.server.max_unauthenticated_per_address,
                context=context,
                reporter=self._reporter,
            )
            self._listener.start()
            self._owned.push_async_callback(self._stop_listening)
            self.tables.start()
            started = time.monotonic()
            # Clients are told LOADING meanwhile; all other tables open when somebody asks for them.
            await self.tables.load(DEFAULT_TABLE)
            await self.tables.note_new()
            self.recovered_ms = round((time.monotonic() - started) * 1000)
        except BaseException:
            await self._owned.aclose()
            raise

    def _check_exposure(self) -> None:
        """Refuse to be reachable from other machines in a way that gives the data away."""
        settings, users = self.config.server, self.config.storage.users
        if not users:
            raise ConfigError("no users are configured, so nobody could log in; `kvsd init` makes a config with one")
        if settings.allow_insecure or is_loopback(settings.listen_host):
            return
        weak = insecure_users(users)
        problems = [f"user {username}: {why}" for username, why in weak.items()]
        if settings.disable_tls:
            problems.append("TLS is off")
        if problems:
            raise ConfigError(
                f"refusing to listen on {settings.listen_host}, which other machines can reach: {'; '.join(problems)}. "
                "Mend that (`kvsd passwd` makes a hash), listen on 127.0.0.1, or set server.allow_insecure: true"
            )

    def _tls_context(self) -> ssl.SSLContext | None:
        settings = self.config.server
        if settings.disable_tls:
            self._reporter.warning("TLS is off: passwords and values can be read on the way")
            return None
        certificate, key = settings.tls_certificate, settings.tls_key
        if certificate is None or key is None:
            missing = "server.tls_certificate" if certificate is None else "server.tls_key"
            raise ConfigError(f"{missing} is not set; set it (`kvsd init` makes a config), or server.disable_tls: true")
        created = ensure_certificates(certificate, key, tls_auto=settings.tls_auto, listen_host=settings.listen_host)
        if created is not None:
            self._reporter.info("made a local CA and a server certificate", files=[str(file) for file in created.files])
        beside = certificate.with_name("ca.pem")
        self.ca_path = created.ca if created is not None else beside if beside.exists() else self.config.client.ca
        return server_context(certificate, key, settings.tls_key_passphrase)

    def _make_tables(self, directory: DataDirectory, share: TableShare) -> Tables:
        settings = replace(self.config.storage, max_open_tables=share.tables)
        if settings.fsync is not Fsync.ALWAYS:
            lost = (
                f"up to {settings.fsync_interval_ms} ms of acknowledged writes"
                if settings.fsync is Fsync.INTERVAL
                else "any number of acknowledged writes"
            )
            self._reporter.warning(f"fsync: {settings.fsync}; a power loss can take {lost}")
        catalog = Catalog(directory.root, directory.medium)
        clock = WallClock(directory.root, self._reporter, directory.medium, is_new=catalog.is_new)
        if catalog.is_new:
            self._reporter.info("a new data folder", path=str(directory.root.absolute()))
        elif not catalog.is_found:
            self._reporter.warning(
                "there is no catalog: every folder is a table, with the server's settings",
                path=str(directory.root.absolute() / "namespaces"),
            )
        for notice in catalog.settle():
            self._reporter.warning(
                notice.event,
                table=str(notice.table),
                path=str(notice.path.absolute()),
                **({} if notice.error is None else {"error": str(notice.error)}),
            )
        commits = self._threads(1, "kvsd-commit")
        pools = Pools(
            commits=commits,
            reads=self._threads(_READ_THREADS, "kvsd-read"),
            compactions=self._threads(1, "kvsd-compaction"),
            hints=self._threads(1, "kvsd-hint"),
        )
        tables = Tables(
            catalog,
            settings,
            pools,
            self.dispatcher,
            self._reporter,
            medium=directory.medium,
            clock=clock,
            open_segments=OpenSegments(share.segments),
            check_root=directory.check,
        )
        # Last, and not at the cost of the other pools.
        commits.grow(_COMMIT_THREADS)
        if commits.lacking:
            self._reporter.warning(f"too few {THREADS}; writes share those that there are", lacking=commits.lacking)
        watching = self._loop.create_task(DescriptorWatch(self._reporter, pools.reads).run(), name="descriptors")
        self._owned.push_async_callback(_end, watching)
        return tables

    def _threads(self, count: int, name: str) -> Threads:
        pool = Threads(count, name)
        self._owned.callback(pool.shutdown)
        return pool

    @property
    def _spare_descriptors(self) -> int:
        """What the tables may need beside the connections: two for each (its folder, and the segment that is written),
        and one for each further segment."""
        return 2 * self.config.storage.max_open_tables + _SPARE_DESCRIPTORS

    def _share_of_tables(self, descriptors: float, connections: int) -> TableShare:
        wanted = self.config.storage.max_open_tables
        share = share_of_tables(descriptors - len(os.listdir("/dev/fd")) - connections, wanted)
        if share.tables < wanted:
            self._reporter.warning(
                "too few descriptors for kvsd.max_open_tables; raise `ulimit -n`",
                descriptors=descriptors,
                tables=share.tables,
                max_open_tables=wanted,
            )
        return share

    def _affordable_connections(self, descriptors: float) -> int:
        """As many as configured, or as leave the tables some of the process's `descriptors`."""
        wanted = self.config.server.max_tcp_connections
        free = descriptors - len(os.listdir("/dev/fd"))
        affordable = max(free - self._spare_descriptors, free // 2, 1)
        if affordable >= wanted:
            return wanted
        self._reporter.warning(
            "too few descriptors for server.max_tcp_connections; raise `ulimit -n`",
            descriptors=descriptors,
            connections=affordable,
            max_tcp_connections=wanted,
        )
        return int(affordable)

    def _make_services(self, authenticator: Authenticator) -> Services:
        settings, storage = self.config.server, self.config.storage
        return Services(
            authenticator=authenticator,
            dispatcher=self.dispatcher,
            administration=Administration(self.tables),
            budget=Budget(settings.memory_bytes),
            limits=Limits.of(storage.max_key_bytes, storage.max_value_bytes),
            reporter=self._reporter,
            authenticate_timeout_seconds=settings.authenticate_timeout_milliseconds / 1000,
            idle_timeout_seconds=settings.idle_timeout_seconds,
            write_timeout_seconds=settings.write_timeout_seconds,
        )

    # Stop

    async def stop(self) -> None:
        """Accept no more, answer what is in flight, seal the logs, and let go of everything.

        Connections that are not done within `server.drain_timeout_seconds` are cut.
        """
        await self._owned.aclose()

    async def _stop_listening(self) -> None:
        await self._listener.stop()
        for session in list(self._services.sessions):
            session.drain()
        try:
            async with patience(self.config.server.drain_timeout_seconds):
                await self._listener.wait_closed()
        except TimeoutError:
            self._reporter.warning("connections cut at the end of the drain", connections=self.connections)
            self._listener.abort()
            await self._listener.wait_closed()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@contextlib.asynccontextmanager
async def run(config: Config, reporter: FilteringBoundLogger | None = None) -> AsyncIterator[Server]:
    """A running server within the caller's event loop; leaving the block drains it. Raises ConfigError."""
    server = Server(config, reporter or make_reporter(config.server.log_level, config.server.log_format))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def serve(config: Config, on_ready: Callable[[Server], None]) -> None:
    """Run until SIGINT, SIGTERM or SIGQUIT and drain then; a second signal ends the process at once.

    Raises ConfigError where the server cannot start. Uses uvloop where it runs.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, on_ready))


async def _serve(config: Config, on_ready: Callable[[Server], None]) -> None:
    loop = asyncio.get_running_loop()
    reporter = make_reporter(config.server.log_level, config.server.log_format)
    stopping = asyncio.Event()

    def give_up() -> None:
        reporter.critical("the disk does not answer; stopping without it")
        os._exit(1)

    def stop(number: int) -> None:
        name = signal.Signals(number).name
        if stopping.is_set():
            # Everything acknowledged is on disk; a thread that hangs in a sync would keep sys.exit waiting.
            reporter.warning("stopping at once", signal=name)
            os._exit(128 + number)
        reporter.info("draining", signal=name)
        loop.call_later(config.server.drain_timeout_seconds + _DISK_GRACE_SECONDS, give_up)
        stopping.set()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    loop.set_exception_handler(partial(_report, reporter))
    async with run(config, reporter) as server:
        _spare_the_collector()
        on_ready(server)
        await stopping.wait()
    reporter.info("stopped")


def _spare_the_collector() -> None:
    """Keep the garbage collector from walking through all that lives long: 10 ms at a start, 100 with a million keys.

    What comes and goes is found in the young generations; we make no cycles that last, and a connection leaves none.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_COLLECTION_EVERY)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _report(reporter: FilteringBoundLogger, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the loop could not hand to anyone: a peer's broken TLS is its own affair, the rest is a fault of ours."""
    error = context.get("exception")
    if isinstance(error, OSError):
        reporter.debug(context["message"], error=str(error))
    else:
        reporter.error(context["message"], exc_info=error)


def is_loopback(host: str) -> bool:
    """Whether all addresses of `host` can be reached from this machine only; raises ConfigError for an unknown one."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}; check server.listen_host") from error
    except UnicodeError:  # too long a label, or an empty one
        raise ConfigError(f"cannot listen on {host}: it is no host name; check server.listen_host") from None
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _raise_descriptor_limit(wanted: int) -> float:
    """How many descriptors the process may have from now on: all that it can get, or `wanted` where that is endless."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    possible = max(soft, wanted) if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (ValueError, OSError):
        return soft
    return possible
