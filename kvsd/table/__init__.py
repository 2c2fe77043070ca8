"""A table: its append-only log, the index that is read from it, and the actor that alone touches both.

Knows nothing of the wire, of users or of configuration files; `Store`, `Log`, `Index` and `Entry` know no asyncio.
"""
