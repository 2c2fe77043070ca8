"""The Python clients: two shells, blocking and asyncio, over one core that does no I/O.

The core is `settings`, `calls`, `conversation`, `failures`, `retries` and `tls`; the shells add sockets, waiting
and time: `sync` with `sync_connection` and `pool`, `aio` with `aio_connection`. Nothing here imports both shells,
so that a blocking program never loads asyncio.
"""
