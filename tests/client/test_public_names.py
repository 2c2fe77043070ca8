"""What `import kvsd` gives, and what it must not load."""

from __future__ import annotations

import ast
import os
import pickle
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


def test_no_module_tells_type_checkers_that_it_has_any_name() -> None:
    """A `__getattr__` that they see makes every misspelt name pass."""
    for path in Path(kvsd.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            assert not (isinstance(node, ast.FunctionDef) and node.name == "__getattr__"), path


@pytest.mark.slow
def test_a_misspelt_name_fails_type_checkers(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        "import kvsd, kvsd.aio\n"
        "with kvsd.connect() as db:\n"
        "    version: int | None = db.set('k', 'v', if_absent=True)\n"
        "def fails() -> None: raise kvsd.Timout\n"
    )
    home = Path(kvsd.__file__).parents[1]
    # An installed package is found by itself, and must not stand there.
    where = {} if home.name == "site-packages" else {"MYPYPATH": str(home)}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", str(program)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **where},
    )
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "program.py:4" in errors[0]
    assert "Timout" in errors[0]


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (kvsd.ConnectionLost, ConnectionError),
        (kvsd.CannotConnect, ConnectionError),
        (kvsd.ConnectionRefused, ConnectionRefusedError),
        (kvsd.CertificateError, ConnectionError),
        (kvsd.Timeout, TimeoutError),
        (kvsd.ClientUnusable, RuntimeError),
    ],
)
def test_errors_are_what_programs_catch_already(error: type[kvsd.KvsdError], base: type[Exception]) -> None:
    assert issubclass(error, base)
    assert str(error("what to do")) == "what to do"
    with pytest.raises(base, match="what to do"):
        raise error("what to do")
    again = pickle.loads(pickle.dumps(error("what to do")))
    assert (type(again), str(again)) == (error, "what to do")


def test_no_other_try_helps_where_a_loop_over_lost_connections_would_go_on() -> None:
    for error in (kvsd.CannotConnect, kvsd.ClientUnusable, kvsd.AuthenticationError, kvsd.Timeout):
        assert not issubclass(error, kvsd.ConnectionLost)


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == kvsd.__version__
