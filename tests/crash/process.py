"""A real server in a process of its own, which is killed and started again on the same data.

Owns: the process, its config file, and what its ready line says. Without TLS, which has no part in what a crash can
break and costs time at every start.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from kvsd.client import aio
from tests.server.peers import PASSWORD_HASH

READY: Final = re.compile(
    r"kvsd ready on 127\.0\.0\.1:(?P<port>\d+) tls=off data=\S+ "
    r"tables=(?P<tables>\d+) unavailable=(?P<unavailable>\d+) entries=(?P<entries>\d+) recovered_ms=\d+\n"
)
STOP_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class Ready:
    """What the ready line counts."""

    port: int
    tables: int
    unavailable: int
    entries: int


class ServerProcess:
    """`start`, then `kill` or `stop`, any number of times; leaving the context kills what still runs."""

    def __init__(self, folder: Path, *, root_dir: Path | None = None, segment_bytes: int = 64 << 10) -> None:
        self.root_dir = root_dir or folder / "data"
        self.table_dir = self.root_dir / "namespaces" / "default" / "default"
        self.ready = Ready(0, 0, 0, 0)
        self._log = folder / "server.log"
        self._config = folder / "config.yaml"
        # YAML reads JSON.
        self._config.write_text(
            json.dumps(
                {
                    "server": {"listen_port": 0, "disable_tls": True, "log_format": "json"},
                    "kvsd": {
                        "root_dir": str(self.root_dir),
                        "segment_bytes": segment_bytes,
                        "cache_bytes": 0,
                        "users": [{"username": "u", "password_hash": PASSWORD_HASH}],
                    },
                }
            ),
            "utf-8",
        )
        self._config.chmod(0o600)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Blocks until the server is ready."""
        self._launch()
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = READY.fullmatch(line)
        assert found, f"the server did not get ready: {line!r}\n{self._log.read_text('utf-8')}"
        self.ready = Ready(**{name: int(count) for name, count in found.groupdict().items()})

    def _launch(self) -> None:
        command = [sys.executable, "-W", "error", "-m", "kvsd", "serve", "--config", str(self._config)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._end()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._end()

    def interrupt_start(self, seconds: float) -> None:
        """Start, and SIGKILL so much later: before, in or soon after recovery."""
        self._launch()
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            raise AssertionError(f"the server ended by itself\n{self._log.read_text('utf-8')}")
        self.kill()

    def _end(self) -> int:
        assert self._process is not None
        self._process.communicate(timeout=STOP_SECONDS)
        status = self._process.returncode
        self._process = None
        return status

    def connect(self) -> aio.Connecting:
        """A client of the server as it runs now."""
        return aio.connect(
            host="127.0.0.1", port=self.ready.port, username="u", password="secret", disable_tls=True, timeout=20
        )

    def logged(self, event: str) -> int:
        """How often the server has logged `event`, over all its starts."""
        lines = self._log.read_text("utf-8").splitlines()
        return sum(json.loads(line)["event"] == event for line in lines if line.startswith("{"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
