"""The yardstick: a bare TLS server on uvloop that answers fixed-size messages with fixed bytes, and does nothing else.

    python echo.py CERTIFICATE KEY REQUEST_BYTES REPLY_FILE

The first message, whatever its size, is answered like a login. Prints its port; ends when standard input does.
"""

import asyncio
import ssl
import sys
from pathlib import Path

import uvloop

LOGGED_IN = b"*2\r\n#\x03|"
READ_BUFFER = memoryview(bytearray(256 << 10))


class Echo(asyncio.BufferedProtocol):
    request_bytes: int
    reply: bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.logged_in = False
        self.rest = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(READ_BUFFER[:nbytes])
        if not self.logged_in:
            self.logged_in = True
            self.transport.write(LOGGED_IN)
            return
        count, self.rest = divmod(self.rest + len(data), self.request_bytes)
        self.transport.write(self.reply * count)


async def main(certificate: str, key: str, request_bytes: str, reply: str) -> None:
    Echo.request_bytes, Echo.reply = int(request_bytes), Path(reply).read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


uvloop.run(main(*sys.argv[1:]))
