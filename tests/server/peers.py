"""The other side of a live server: peers that speak bytes, and a log that tells what the server said of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

from kvsd.protocol.decoder import Decoder
from kvsd.protocol.messages import Message, encode
from kvsd.server import Server

PATIENCE_SECONDS = 10.0

# Of "secret", at the least cost that Argon2 allows.
PASSWORD_HASH = "$argon2id$v=19$m=8,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$39tbUSD70LTTCIyCWo9t5sDidhNPptw1P94ISzTyALc"

VECTORS: dict[str, bytes] = {
    row["name"]: bytes.fromhex(row["hex"])
    for row in json.loads((Path(__file__).parents[1] / "data" / "wire-vectors.json").read_text())
}
LOGIN = VECTORS["authenticate"]
NULL = VECTORS["authenticated reply"]
REFUSED = VECTORS["bad credentials reply"]


async def until(condition: Callable[[], object], otherwise: str) -> None:
    """Let others run until `condition` holds. A pause, not `sleep(0)`: worker threads need the processor, too."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(otherwise) from None


class Peer:
    """A client that sends exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(
        cls, server: Server, *, login: bool = True, tls: bool | None = None, receive_bytes: int | None = None
    ) -> Self:
        """A connection in the way that the server is configured, or with or without `tls`.

        `receive_bytes` bounds what the system and the reader take in ahead of what is read.
        """
        if tls is None:
            tls = not server.config.server.disable_tls
        raw = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
        raw.setblocking(False)
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.get_running_loop().sock_connect(raw, (server.host, server.port))
            reader, writer = await asyncio.open_connection(
                sock=raw,
                ssl=client_context(server.ca_path) if tls else None,
                server_hostname="localhost" if tls else None,
                limit=receive_bytes or 1 << 20,
            )
        peer = cls(reader, writer)
        if login:
            await peer.log_in()
        return peer

    async def log_in(self) -> None:
        await self.say(LOGIN)
        await self.expect(NULL)

    async def say(self, *data: bytes | Message) -> None:
        """Send bytes, or messages."""
        self.writer.write(b"".join(part if isinstance(part, bytes) else encode(part) for part in data))
        await self.writer.drain()

    async def say_slowly(self, data: bytes, piece_bytes: int = 1) -> None:
        """In pieces; each is a read of its own, if the server is quick enough."""
        for start in range(0, len(data), piece_bytes):
            await self.say(data[start : start + piece_bytes])
            await asyncio.sleep(0)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readexactly(size)

    async def expect(self, data: bytes) -> None:
        assert await self.read(len(data)) == data

    async def hear(self, count: int = 1) -> list[Message]:
        """The next `count` messages; they must come together with nothing behind them."""
        decoder, heard = Decoder(), []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(heard) < count:
                data = await self.reader.read(1 << 18)
                assert data, f"closed after {heard!r}"
                decoder.feed(data)
                while (message := decoder.next_message()) is not None:
                    heard.append(message)
        assert len(heard) == count
        assert decoder.buffered_bytes == 0
        return heard

    async def hear_one(self) -> Message:
        [message] = await self.hear()
        return message

    async def rest(self) -> bytes:
        """All until the server closes, in order or not."""
        data = b""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while piece := await self.reader.read(1 << 18):
                    data += piece
        return data

    async def expect_end(self) -> None:
        assert await self.rest() == b""

    async def ping(self) -> None:
        """Show that the connection lives and is in step."""
        await self.say(b"*3\r\n#\x01||")
        assert (await self.read(5)) == b"*3\r\n#"
        await self.reader.readuntil(b"+00:00\r\n")

    def end(self) -> None:
        """Half-close; without TLS only."""
        self.writer.write_eof()

    def reset(self) -> None:
        """End with a RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.writer.wait_closed()


def client_context(ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    return context


class Reports:
    """A logger that remembers. What is worse than a warning must be expected, with `take`."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        if level not in {"debug", "info", "warning", "error", "critical"}:
            raise AttributeError(level)

        def report(event: str, **fields: object) -> None:
            self.lines.append((level, event, fields))

        return report

    def count(self, event: str) -> int:
        return sum(line[1] == event for line in self.lines)

    def take(self, event: str) -> dict[str, object]:
        """The fields of the first line about `event`, which is forgotten."""
        for line in self.lines:
            if line[1] == event:
                self.lines.remove(line)
                return line[2]
        raise AssertionError(f"{event!r} is not among {self.lines}")

    @property
    def faults(self) -> list[tuple[str, str, dict[str, object]]]:
        return [line for line in self.lines if line[0] in {"error", "critical"}]
