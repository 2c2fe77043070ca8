"""A connected socket for an asyncio client, over whichever of a host's addresses takes it first.

Owns: waiting for the look-up, and the race between addresses (RFC 8305, "happy eyeballs"), which uvloop's
`create_connection` does not know. Knows nothing of TLS or of what is said on a connection.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

from kvsd.client import failures
from kvsd.client.addresses import Endpoint, literal_addresses, look_up
from kvsd.client.settings import ConnectSettings

ATTEMPT_DELAY_SECONDS: Final = 0.25
"""The time that an address has for itself before the next one is tried beside it."""


async def resolve(settings: ConnectSettings, seconds: float) -> list[Endpoint]:
    """The addresses of the host, at least one.

    Raises Timeout where they have not come within `seconds`, CannotConnect where there are none.
    """
    loop = asyncio.get_running_loop()
    try:
        endpoints = literal_addresses(settings.host, settings.port)
        if endpoints is not None:
            return endpoints
        done: asyncio.Future[None] = loop.create_future()

        def ring() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(end)

        def end() -> None:
            if not done.done():
                done.set_result(None)

        lookup = look_up(settings.host, settings.port, ring)
        async with asyncio.timeout(seconds):
            await done
        return lookup.result()
    except TimeoutError:
        raise failures.no_name(settings, seconds) from None
    except (OSError, ValueError) as error:
        raise failures.cannot_open(settings, error) from error


async def connect_first(endpoints: list[Endpoint]) -> socket.socket:
    """Connected to one of `endpoints`; raises OSError, as the last of them has it."""
    waiting = list(endpoints)
    tries: set[asyncio.Task[socket.socket]] = set()
    error: BaseException | None = None
    try:
        while waiting or tries:
            if waiting:
                tries.add(asyncio.create_task(_connect(waiting.pop(0))))
            delay = ATTEMPT_DELAY_SECONDS if waiting else None
            ended, _ = await asyncio.wait(tries, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for attempt in ended:
                tries.discard(attempt)
                error = attempt.exception()
                if error is None:
                    return attempt.result()
    finally:
        for attempt in tries:
            attempt.add_done_callback(_close_loser)
            attempt.cancel()
    assert error is not None, "there is at least one address"
    raise error


async def _connect(endpoint: Endpoint) -> socket.socket:
    plain = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        plain.setblocking(False)
        # An event loop does so for the sockets that it has made itself.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(plain, endpoint.address)
    except BaseException:
        plain.close()
        raise
    return plain


def _close_loser(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
