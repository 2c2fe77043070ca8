"""The asyncio client under its public name: `kvsd.aio.connect`."""

from __future__ import annotations

from kvsd.client.aio import Client, connect

__all__ = ["Client", "connect"]
