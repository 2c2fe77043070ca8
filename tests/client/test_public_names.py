"""What `import kvsd` gives, and what it must not load."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kvsd

HEAVY = {"asyncio", "structlog", "cryptography", "rich", "yaml", "msgspec", "uvloop", "typer"}


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import kvsd", HEAVY | {"ssl", "socket"}),
        ("import kvsd.client.sync", HEAVY),
        ("from kvsd import connect; connect(username='u', password='p', disable_tls=True).close()", HEAVY),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, banned: set[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(kvsd.__file__).parents[1],
    )
    assert banned.isdisjoint(found.stdout.split())


def test_every_public_name_is_there() -> None:
    for name in kvsd.__all__:
        assert getattr(kvsd, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = kvsd.nothing_of_the_kind


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == kvsd.__version__
