"""The manual's way out where files are gone from under a server, carried out on a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog, ReadOnly
from kvsd.table.segment import SEGMENT_HEADER_BYTES
from tests.crash.process import ServerProcess
from tests.server.peers import until

LOST = "the data folder is gone from under the server; all tables are read-only"
GONE = "a file is gone from under the server; the table is read-only"
KEYS = {f"key-{number}": f"value-{number}" * 100 for number in range(200)}


def kvsd(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvsd", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={
            **os.environ,
            "KVSD_HOST": "127.0.0.1",
            "KVSD_PORT": str(server.ready.port),
            "KVSD_USERNAME": "u",
            "KVSD_PASSWORD": "secret",
            "KVSD_DISABLE_TLS": "1",
        },
    )


@pytest.mark.parametrize("way", ["put back", "copied"])
async def test_what_is_gone_from_under_a_server_can_be_put_back_or_copied_from_it(tmp_path: Path, way: str) -> None:
    with ServerProcess(tmp_path) as server:
        server.start()
        async with server.connect() as client:
            for key, value in KEYS.items():
                await client.set(key, value)
            await client.tables.create("other")
            await client.table("other").set("k", "v")
            server.root_dir.rename(tmp_path / "aside")
            await until(lambda: server.logged(LOST), "the server has not noticed")
            for table in (client, client.table("other")):
                with pytest.raises(ReadOnly, match=str(server.root_dir)):
                    await table.set("new", "value")
        if way == "put back":
            refused = kvsd(server, "table", "reopen", "default")
            assert (refused.returncode, str(server.root_dir) in refused.stderr) == (1, True)
            (tmp_path / "aside").rename(server.root_dir)
            for name in ("default", "other"):
                assert kvsd(server, "table", "reopen", name).returncode == 0
            assert kvsd(server, "set", "new", "value").returncode == 0
            assert server.stop() == 0
            server.start()
            assert server.ready.entries == len(KEYS) + 1
        else:
            copied = kvsd(server, "scan", "--json")
            assert copied.returncode == 0
            found = map(json.loads, copied.stdout.splitlines())
            assert {entry["key"]: entry["value"] for entry in found} == KEYS
            assert kvsd(server, "scan", "--json", "--table", "other").stdout.count("\n") == 1
            assert server.stop() == 0
        assert server.logged(LOST) == 1


@pytest.mark.parametrize("deed", ["removed", "cut"])
async def test_a_start_tells_that_acknowledged_keys_are_gone_as_the_server_did_that_lost_them(
    tmp_path: Path, deed: str
) -> None:
    """Their segment was not sealed yet: so without it the log ends as after a crash."""
    with ServerProcess(tmp_path) as server:
        server.start()
        async with server.connect() as client:
            for key, value in KEYS.items():
                await client.set(key, value)
            segment = max((server.root_dir / "namespaces/default/default").glob("*.seg"))
            if deed == "removed":
                segment.unlink()
            else:
                os.truncate(segment, SEGMENT_HEADER_BYTES)
            await until(lambda: server.logged(GONE), "the server has not noticed")
            with pytest.raises(ReadOnly):
                await client.set("new", "value")
        assert server.stop() == 0
        server.start()
        assert server.ready.entries == 0
        async with server.connect() as client:
            with pytest.raises(CorruptLog, match="is missing"):
                await client.get("key-0")
