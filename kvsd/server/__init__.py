"""The daemon: it accepts connections, authenticates them, and passes what they ask to the tables' actors.

`run(config)` embeds one: `async with kvsd.server.run(config) as server: ...`.
"""

from kvsd.server.server import Server, run

__all__ = ["Server", "run"]
