"""The whole daemon: what is started in which order, and how it stops.

Owns: start-up, the ready state, draining. Must not know messages, signals, nor what is in a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import os
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from kvsd.config import Config
from kvsd.errors import ConfigError
from kvsd.protocol.limits import Limits
from kvsd.server.administration import Administration
from kvsd.server.aside import aside
from kvsd.server.authentication import Authenticator, insecure_users
from kvsd.server.catalog import Catalog
from kvsd.server.certificate_watch import CertificateWatch
from kvsd.server.clock import WallClock
from kvsd.server.descriptors import DescriptorWatch, TableShare, share_of_tables
from kvsd.server.directory import DataDirectory
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.listener import Listener, bind
from kvsd.server.names import DEFAULT_TABLE
from kvsd.server.reporting import LimitedReporter, make_reporter
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


class Server:
    """One running daemon: `start`, then `stop`. Use `run`, which sees to both."""

    def __init__(self, config: Config, reporter: FilteringBoundLogger) -> None:
        self.config = config
        self.ca_path: Path | None = None
        """The CA that clients should trust, where it lies beside the server's certificate."""
        self.recovered_ms = 0
        self.dispatcher = Dispatcher()
        self._reporter = LimitedReporter(reporter)
        self._loop = asyncio.get_running_loop()
        self._owned = contextlib.AsyncExitStack()
        self._owned.callback(self._reporter.end_minute)
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
    def open_tables(self) -> int:
        """Tables that a stop has still to close."""
        return self.tables.still_open if hasattr(self, "tables") else 0

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

        Raises ConfigError, and has let go of everything then. May be cancelled, which gives up the recovery, too.
        """
        try:
            await aside(partial(check_exposure, self.config))
            # Twice: for what is open when the connections come, and for what comes later.
            descriptors = _raise_descriptor_limit(
                self.config.server.max_tcp_connections + self._spare_descriptors + _SPARE_DESCRIPTORS
            )
            directory = self._owned.enter_context(DataDirectory(self.config.storage.root_dir, Medium()))
            context = await self._tls_context()
            authenticator = await aside(partial(Authenticator.from_users, self.config.storage.users))
            self._owned.push_async_callback(authenticator.close)
            settings = self.config.server
            self._sockets = await aside(partial(bind, settings.listen_host, settings.listen_port, settings.backlog))
            for listening in self._sockets:
                self._owned.callback(listening.close)
            connections, share = self._divide(descriptors)
            self.tables = self._make_tables(directory, share)
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

    async def _tls_context(self) -> ssl.SSLContext | None:
        pair = certificate_pair(self.config)
        if pair is None:
            self._reporter.warning("TLS is off: passwords and values can be read on the way")
            return None
        settings = self.config.server
        certificate, key = pair
        created = ensure_certificates(certificate, key, tls_auto=settings.tls_auto, listen_host=settings.listen_host)
        if created is not None:
            self._reporter.info("made a local CA and a server certificate", files=[str(file) for file in created.files])
        self.ca_path = created.ca if created is not None else ca_beside(certificate) or self.config.client.ca
        context = server_context(certificate, key, settings.tls_key_passphrase)
        watch = CertificateWatch(
            certificate,
            key,
            ca=self.ca_path,
            host=settings.listen_host,
            passphrase=settings.tls_key_passphrase,
            reporter=self._reporter,
        )
        await watch.look()
        watching = self._loop.create_task(watch.run(), name="certificate")
        self._owned.push_async_callback(_end, watching)
        return context

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
        """Descriptors that the tables may need beside the connections: two for each (its folder, and the segment that
        is written), and one for each further segment."""
        return 2 * self.config.storage.max_open_tables + _SPARE_DESCRIPTORS

    def _divide(self, descriptors: float) -> tuple[int, TableShare]:
        """As many connections as configured, or as leave the tables some of the process's `descriptors`; and their
        share."""
        wanted, tables_wanted = self.config.server.max_tcp_connections, self.config.storage.max_open_tables
        free = descriptors - len(os.listdir("/dev/fd"))
        connections = int(min(wanted, max(free - self._spare_descriptors, free // 2, 1)))
        share = share_of_tables(free - connections, tables_wanted)
        if connections < wanted or share.tables < tables_wanted:
            setting = "server.max_tcp_connections" if connections < wanted else "kvsd.max_open_tables"
            self._reporter.warning(
                f"too few descriptors for {setting}; raise `ulimit -n`",
                descriptors=descriptors,
                connections=connections,
                max_tcp_connections=wanted,
                tables=share.tables,
                max_open_tables=tables_wanted,
            )
        return connections, share

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


@contextlib.asynccontextmanager
async def run(config: Config, reporter: FilteringBoundLogger | None = None) -> AsyncIterator[Server]:
    """A running server within the caller's event loop; leaving the block drains it. Raises ConfigError."""
    server = Server(config, reporter or make_reporter(config.server.log_level, config.server.log_format))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def check_exposure(config: Config) -> None:
    """Raise ConfigError where nobody could log in, or where other machines could have the data."""
    settings, users = config.server, config.storage.users
    if not users:
        raise ConfigError(
            "no users are configured, so nobody could log in; `kvsd init` makes a config with one, or set "
            "KVSD_USERNAME and KVSD_PASSWORD_FILE (or KVSD_PASSWORD)"
        )
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


def certificate_pair(config: Config) -> tuple[Path, Path] | None:
    """The configured certificate and its key; None without TLS. Raises ConfigError where one is not set."""
    settings = config.server
    if settings.disable_tls:
        return None
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        missing = "server.tls_certificate" if certificate is None else "server.tls_key"
        raise ConfigError(f"{missing} is not set; set it (`kvsd init` makes a config), or server.disable_tls: true")
    return certificate, key


def ca_beside(certificate: Path) -> Path | None:
    """The file of the CA that clients should trust, where it lies beside the server's certificate."""
    beside = certificate.with_name("ca.pem")
    return beside if beside.exists() else None


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
