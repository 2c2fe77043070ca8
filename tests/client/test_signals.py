"""A signal handler that raises, wherever it may do so: later calls find everything in its place."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kvsd.aio import Client as AioClient
from kvsd.client.settings import ConnectSettings
from kvsd.client.sync import Client
from kvsd.errors import KvsdError

from .fake import FakeServer, Peer, RustServer
from .injector import Injector, Limit

Settings = Callable[..., ConnectSettings]
Context = ssl.SSLContext | None

# A connection that is dropped between two lines is closed when it is collected, and Python tells of that.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

VALUES = {f"key {n}".encode(): b"%d" % n * 50 for n in range(5)}


@pytest.fixture
def server(context: Context) -> Iterator[FakeServer]:
    """With a table, for clients that may leave at any moment."""
    rust = RustServer()
    rust.table.update(VALUES)

    def script(peer: Peer) -> None:
        with suppress(AssertionError, OSError):
            rust(peer)

    with FakeServer(script, context=context) as server:
        yield server


ACTIONS: dict[str, Callable[[Client], object]] = {
    "get": lambda client: client.get("key 1"),
    "set": lambda client: client.set("other", "v"),
    "get_many": lambda client: client.get_many(list(VALUES)),
}


@pytest.mark.parametrize("action", list(ACTIONS))
def test_whatever_a_signal_handler_interrupts_the_next_call_has_its_own_reply(
    server: FakeServer, settings: Settings, action: str
) -> None:
    """One connection at most, so that a permit that were lost would be the only one."""
    with Client(settings(server.port, timeout_seconds=5.0), pool_size=1) as client:
        client.get("key 0")
        counting = Injector()
        counting.run(lambda: ACTIONS[action](client))
        assert counting.places > 20
        # The last may not be there each time: it depends on how the replies are cut.
        raised = 0
        for nth in range(counting.places):
            injector = Injector(nth)
            with suppress(Limit):
                injector.run(lambda: ACTIONS[action](client))
            raised += injector.has_raised
            assert client._pool._leases == {}
            key = f"key {nth % 5}".encode()
            assert client.get(key) == VALUES[key]
        assert raised > 20


def test_a_connection_that_is_interrupted_while_it_opens_takes_nothing_with_it(
    server: FakeServer, settings: Settings
) -> None:
    def opening() -> bytes | None:
        with Client(made, pool_size=1) as client:
            return client.get("key 1")

    made = settings(server.port, timeout_seconds=5.0)
    counting = Injector()
    counting.run(opening)
    # The first places are those of every client, tried again and again.
    with Client(made, pool_size=1) as client:
        for nth in range(counting.places):

            def reopening() -> bytes | None:
                client._pool.close()
                client._pool._closed = False
                return client.get("key 1")

            with suppress(Limit):
                Injector(nth).run(reopening)
            client._pool._closed = False
            assert client._pool._leases == {}
            assert client.get("key 2") == VALUES[b"key 2"]


def test_a_thread_that_waits_for_a_connection_gets_it_from_an_interrupted_one(
    server: FakeServer, settings: Settings
) -> None:
    with (
        Client(settings(server.port, timeout_seconds=5.0), pool_size=1) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        client.get("key 0")
        counting = Injector()
        counting.run(lambda: client.get("key 1"))
        for nth in range(0, counting.places, 7):
            before = threads.submit(client.get, "key 2")
            with suppress(Limit):
                Injector(nth).run(lambda: client.get("key 1"))
            behind = threads.submit(client.get, "key 3")
            assert (before.result(5), behind.result(5)) == (VALUES[b"key 2"], VALUES[b"key 3"])


def test_a_signal_handler_may_use_the_client_that_it_interrupts(server: FakeServer, settings: Settings) -> None:
    """With a connection to spare it works, and with none it is told within the timeout."""
    with Client(settings(server.port, timeout_seconds=0.2), pool_size=2) as client:
        client.get("key 0")
        counting = Injector()
        counting.run(lambda: client.get("key 1"))

        class Reentrant(Injector):
            def _trace(self, *event: object) -> object:
                try:
                    return super()._trace(*event)  # type: ignore[arg-type] # as it was called
                except Limit:
                    assert client.get("key 3") == VALUES[b"key 3"]
                    return self._trace

        for nth in range(counting.places):
            assert Reentrant(nth).run(lambda: client.get("key 1")) == VALUES[b"key 1"]


def test_whatever_is_interrupted_in_asyncio_nobody_gets_the_reply_of_another(
    server: FakeServer, settings: Settings
) -> None:
    async def ask() -> list[object]:
        return await asyncio.gather(*map(client.get, VALUES), return_exceptions=True)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda *_: None)  # Limit, out of a callback
        client = AioClient(settings(server.port, timeout_seconds=0.3))
        assert runner.run(ask()) == list(VALUES.values())
        counting = Injector()
        counting.run(lambda: runner.run(ask()))
        assert counting.places > 50
        for nth in range(counting.places):
            for outcome, value in zip(Injector(nth).run(lambda: runner.run(ask())), VALUES.values(), strict=True):
                assert outcome == value or isinstance(outcome, Limit | KvsdError)
            assert runner.run(ask()) == list(VALUES.values())
        runner.run(client.close())
