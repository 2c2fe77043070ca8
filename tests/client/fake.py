"""Peers for the clients: a scripted one that speaks captured bytes, and one that answers for real, in odd pieces.

The scripted one plays the Rust server: what it says and what it expects are the bytes of wire-vectors.json. It runs
in a thread, so that both clients can be held against the same script.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import uvloop

from kvsd.client import aio, sync
from kvsd.client.settings import ConnectSettings
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.messages import Authenticate, Delete, Get, Hello, Message, Ping, Set, Success, encode

PATIENCE_SECONDS = 10.0

VECTORS: dict[str, bytes] = {
    row["name"]: bytes.fromhex(row["hex"])
    for row in json.loads((Path(__file__).parents[1] / "data" / "wire-vectors.json").read_text())
}

LOGIN = VECTORS["authenticate"]
WELCOME = VECTORS["authenticated reply"]
NULL = VECTORS["set reply"]


class Peer:
    """The server's end of one connection, used by a script."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def expect(self, data: bytes) -> None:
        """Read exactly `data`."""
        assert self.read(len(data)) == data

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, f"the client left after {data!r}"
            data += piece
        return data

    def send(self, data: bytes, piece_bytes: int = 1 << 20) -> None:
        for start in range(0, len(data), piece_bytes):
            self.socket.sendall(data[start : start + piece_bytes])

    def log_in(self) -> None:
        self.expect(LOGIN)
        self.send(WELCOME)

    def wait_for_end(self) -> None:
        """Read until the client closes."""
        with suppress(OSError):
            while self.socket.recv(65_536):
                pass

    def reset(self) -> None:
        """End with a RST rather than a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Script = Callable[[Peer], None]


class FakeServer:
    """Runs the nth script on the nth connection, the last one on all further ones; raises what a script raised."""

    def __init__(
        self, *scripts: Script, context: ssl.SSLContext | None = None, listener: socket.socket | None = None
    ) -> None:
        self._scripts = scripts
        self._context = context
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._sessions: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._sessions):
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]

    def wait_for_last(self) -> None:
        """Wait until the script on the last connection has ended, and with it the connection."""
        self._sessions[-1].join(PATIENCE_SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            session = threading.Thread(target=self._run, args=(connection, script))
            self._sessions.append(session)
            session.start()

    def _run(self, connection: socket.socket, script: Script) -> None:
        connection.settimeout(PATIENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
        except OSError:  # the client does not trust us, or speaks no TLS
            connection.close()
            return
        with connection:
            try:
                script(Peer(connection))
            except BaseException as error:
                self._errors.append(error)


def replay(requests: Sequence[bytes], replies: Sequence[bytes], piece_bytes: int = 1 << 20) -> Script:
    """Log in, answer each request with its reply, and wait for the client to leave."""

    def script(peer: Peer) -> None:
        peer.log_in()
        for request, reply in zip(requests, replies, strict=True):
            peer.expect(request)
            peer.send(reply, piece_bytes)
        peer.wait_for_end()

    return script


class RustServer:
    """As a script: the Rust program with a table in memory.

    It ends a connection, without a word, at what it does not know: types above 7, keys in other than String frames.
    """

    def __init__(self) -> None:
        self.table: dict[bytes, bytes] = {}
        self.hellos = 0

    def __call__(self, peer: Peer) -> None:
        peer.log_in()
        decoder = Decoder()
        with suppress(ConnectionError, ssl.SSLError):
            while data := peer.socket.recv(65_536):
                if b"#\x06$" in data or b"#\x05$" in data or b"#\x07$" in data:
                    return
                decoder.feed(data)
                while (request := decoder.next_message()) is not None:
                    if isinstance(request, Hello):
                        self.hellos += 1
                        return
                    peer.send(encode(self._answer(request)))

    def _answer(self, request: object) -> Message:
        match request:
            case Set(key, value):
                self.table[key] = value
                return Success(None)
            case Get(key):
                return Success(self.table.get(key))
            case Delete(key):
                return Success(self.table.pop(key, None))
            case Ping(client_time, _):
                return Ping(client_time, client_time)
            case _:
                raise AssertionError(f"a client sends {request!r} to a plain server")


class AioShell:
    """The asyncio client behind the blocking one's interface."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def __init__(self, settings: ConnectSettings) -> None:
        self._runner = asyncio.Runner(debug=True, loop_factory=type(self).loop_factory)

        async def make() -> aio.Client:
            return aio.Client(settings)

        self._client = self._runner.run(make())

    def get(self, key: str | bytes) -> bytes | None:
        return self._runner.run(self._client.get(key))

    def set(self, key: str | bytes, value: str | bytes) -> None:
        self._runner.run(self._client.set(key, value))

    def delete(self, key: str | bytes) -> bytes | None:
        return self._runner.run(self._client.delete(key))

    def do(self, name: str, *arguments: object, **named: object) -> object:
        """Any other call."""
        return self._runner.run(getattr(self._client, name)(*arguments, **named))

    def ping(self) -> float:
        return self._runner.run(self._client.ping())

    def close(self) -> None:
        self._runner.run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._runner:
            self.close()


class UvloopShell(AioShell):
    """The same on the loop that users of speed run."""

    loop_factory = uvloop.new_event_loop


class SyncShell(sync.Client):
    """The blocking client."""

    def do(self, name: str, *arguments: object, **named: object) -> object:
        return getattr(self, name)(*arguments, **named)


SHELLS = {"sync": SyncShell, "aio": AioShell, "uvloop": UvloopShell}


class EchoServer:
    """Answers a get with its key reversed, in the turn and in the pieces that a seeded random decides."""

    def __init__(self, seed: int, context: ssl.SSLContext | None = None) -> None:
        self._random = random.Random(seed)
        self._context = context
        self.connections = 0
        self.answered = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        decoder = Decoder()
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                decoder.feed(data)
                replies = b""
                while (request := decoder.next_message()) is not None:
                    replies += self._answer(request)
                while replies:
                    size = self._random.randrange(1, 400)
                    writer.write(replies[:size])
                    replies = replies[size:]
                    for _ in range(self._random.randrange(4)):
                        await asyncio.sleep(0)
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    def _answer(self, request: object) -> bytes:
        self.answered += 1
        match request:
            case Authenticate() | Set():
                return NULL
            case Get(key) | Delete(key):
                return encode(Success(key[::-1]))
            case Ping(client_time, _):
                return encode(Ping(client_time, client_time))
            case _:
                raise AssertionError(request)
