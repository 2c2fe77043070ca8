"""What clients do where programs fork, thread, are interrupted or wait: both clients, in the clear and over TLS.

A signal handler that raises is `test_signals`' matter.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import kvsd

from . import circumstances


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("cell", list(circumstances.CELLS))
def test_each_value_is_right_or_the_error_clear_and_in_time(cell: str, kind: str) -> None:
    library = cell.partition("_")[0]
    if library in {"gevent", "eventlet"} and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    ended = subprocess.run(
        [sys.executable, circumstances.__file__, cell, kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(kvsd.__file__).parents[1],
    )
    assert ended.returncode == 0, ended.stderr
