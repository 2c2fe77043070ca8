"""The wire: frames, messages and the decoder. Pure: bytes in, messages out, and back.

Must not know sockets, clocks, asyncio or tables. A server and a client stand on the same code.
"""
