"""The directions of imports between the packages, and what an import must not cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kvsd

ROOT = Path(kvsd.__file__).parent

EVERYONE = {"types", "errors"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "protocol": EVERYONE,
    "table": EVERYONE,
    "url": EVERYONE | {"config"},
    "config": EVERYONE,
    "client": EVERYONE | {"protocol", "url", "config"},
    "aio": {"client"},
    "server": EVERYONE | {"protocol", "table", "config"},
    "cli": EVERYONE | {"server", "table", "client", "config", "url"},
    "__init__": EVERYONE | {"client", "aio", "config", "server"},
    "__main__": {"cli"},
}
MAY_KNOW_ASYNCIO = {"__init__", "actor", "committer", "request", "workers"}
"""Of the modules in `table`; all others are synchronous."""


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                found.update(alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                found.update([module] if module != "kvsd" else (f"kvsd.{alias.name}" for alias in node.names))
            case ast.ImportFrom():
                pytest.fail(f"{path}: relative import; the project names its modules in full")
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("kvsd.")}
    assert used - {part} <= ALLOWED[part]


def test_the_synchronous_core_knows_no_asyncio() -> None:
    core = [path for path in (ROOT / "table").glob("*.py") if path.stem not in MAY_KNOW_ASYNCIO]
    for path in [*core, ROOT / "server/catalog.py", ROOT / "server/loading.py", ROOT / "client/conversation.py"]:
        assert "asyncio" not in imports(path), path


def test_no_thread_is_started_when_it_is_needed() -> None:
    """The one pool whose threads are all there from the start is that of `kvsd.table.threads`."""
    for path in [*(ROOT / "table").glob("*.py"), *(ROOT / "server").glob("*.py")]:
        text = path.read_text("utf-8")
        assert not [word for word in ("ThreadPoolExecutor", "to_thread", "run_in_executor(None") if word in text], path


def test_the_protocol_is_pure() -> None:
    for path in (ROOT / "protocol").glob("*.py"):
        assert not imports(path) & {"asyncio", "socket", "ssl", "time", "threading", "os"}


def test_the_blocking_client_loads_nothing_heavy() -> None:
    code = "import sys, kvsd; kvsd.connect; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20).stdout
    assert not {"asyncio", "structlog", "cryptography", "rich", "yaml", "typer"} & set(loaded.split())
