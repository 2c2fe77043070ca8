"""A server within the test's process whose tables keep their files on a faulty medium.

Owns: putting the medium under the server. The data directory's lock stays outside of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvsd.client import aio
from kvsd.config import Config, ServerSettings, StorageSettings, User
from kvsd.server import Server
from tests.crash.recording import Reports
from tests.server.peers import PASSWORD_HASH
from tests.table.medium import FaultyMedium

SEGMENT_BYTES = 2_048


@asynccontextmanager
async def serve_on(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch, reports: Reports | None = None, *, cache_bytes: int = 0
) -> AsyncIterator[tuple[Server, aio.Client]]:
    """A server whose data directory is the root of `medium`, and a client of it."""
    monkeypatch.setattr("kvsd.server.server.Medium", lambda: medium)
    server = Server(
        Config(
            server=ServerSettings(listen_port=0, disable_tls=True, drain_timeout_seconds=5),
            storage=StorageSettings(
                root_dir=medium.root,
                segment_bytes=SEGMENT_BYTES,
                cache_bytes=cache_bytes,
                users=(User(username="u", password_hash=PASSWORD_HASH),),
            ),
        ),
        Reports() if reports is None else reports,
    )
    async with asyncio.timeout(30):
        await server.start()
        try:
            async with aio.connect(
                host=server.host, port=server.port, username="u", password="secret", disable_tls=True, timeout=20
            ) as client:
                yield server, client
        finally:
            await server.stop()
    assert not medium.open_files
