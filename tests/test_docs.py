"""The pages keep their word: what is written by a program is current, and examples run."""

from __future__ import annotations

import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.config import SETTINGS
from tests.documents import ROOT, assert_prints, code_blocks, console_blocks, run_python, sample_server

DOCS = ROOT / "docs"


def test_the_python_reference_is_that_of_the_docstrings() -> None:
    """KVSD_TEST_WRITE=1 writes it anew."""
    path = DOCS / "python.md"
    page = path.read_text("utf-8")
    current = runpy.run_path(str(DOCS / "python_reference.py"))["current"](page)
    if os.environ.get("KVSD_TEST_WRITE"):
        path.write_text(current, "utf-8")
    else:
        assert page == current


BEGIN, END = "<!-- settings: written and checked by tests/test_docs.py -->\n", "<!-- end of settings -->\n"


def settings_table() -> str:
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    rows += [
        f"| `{name}` | `{setting.shown(setting.default)}` | {setting.doc.rstrip('.')} |"
        for name, setting in SETTINGS.items()
    ]
    return "\n".join(rows) + "\n"


def test_the_table_of_settings_is_current() -> None:
    """KVSD_TEST_WRITE=1 writes the table anew."""
    path = DOCS / "settings.md"
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    written, _, after = rest.partition(END)
    if os.environ.get("KVSD_TEST_WRITE"):
        path.write_text(before + BEGIN + settings_table() + END + after, "utf-8")
    else:
        assert written == settings_table()


def shown(picture: str) -> list[str]:
    """The lines of text in `picture`, without what each recording changes: times of the day and round trips."""
    lines: dict[float, str] = {}
    for y, text in re.findall(r'<text class="session-r\d+" x="[\d.]+" y="([\d.]+)"[^>]*>(.*?)</text>', picture):
        lines[float(y)] = lines.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return [re.sub(r"\d+(?:[-T:.+]\d+)+", "#", lines[y]).rstrip() for y in sorted(lines)]


def test_the_picture_of_a_session_shows_what_the_commands_print() -> None:
    """KVSD_TEST_WRITE=1 records it anew."""
    path = DOCS / "session.svg"
    recorder = runpy.run_path(str(DOCS / "record_session.py"))
    recorded = recorder["record"]()
    if os.environ.get("KVSD_TEST_WRITE"):
        path.write_text(recorded, "utf-8")
    lines = shown(path.read_text("utf-8"))
    assert lines == shown(recorded)
    assert [line[2:] for line in lines if line.startswith("$ ")] == list(recorder["COMMANDS"])


def test_the_examples_of_the_python_page_run(tmp_path: Path) -> None:
    with sample_server(tmp_path) as port:
        for block in code_blocks(DOCS / "python.md", "python"):
            run_python(block, tmp_path, KVSD_PORT=port)


ASK_ASGI = """
import asyncio


async def ask() -> None:
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async with lifespan(app):
        await app({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}, receive, send)
    print(sent[1]["body"].decode())


asyncio.run(ask())
"""

RECIPES = {
    "Flask(": ('print(app.test_client().get("/").text)', "You are visitor number 1.\n"),
    "Starlette(": (
        ASK_ASGI,
        "You are visitor number 2.\n",
    ),
    "multiprocessing": ("", ""),
    "def lock(": ("", "somebody else makes the report\n"),
    "def allow(": ("", "[True, True, True, False]\n"),
    "def cached(": ("", ""),
}
"""By what each recipe has alone: what a test adds to it, and what it prints then."""


def test_the_recipes_run(tmp_path: Path) -> None:
    blocks = code_blocks(DOCS / "recipes.md", "python")
    settings = {"KVSD_CA": "certs/ca.pem", "KVSD_USERNAME": "kvsduser", "KVSD_PASSWORD": "secret"}
    assert len(blocks) == len(RECIPES)
    with sample_server(tmp_path) as port:
        for block, (part, (addition, printed)) in zip(blocks, RECIPES.items(), strict=True):
            assert part in block
            assert run_python(f"{block}\n{addition}\n", tmp_path, KVSD_PORT=port, **settings) == printed, part


def commands_of_recipes() -> list[str]:
    """The calls of kvsd in what no test can carry out: crontabs, containers and units."""
    page = DOCS / "recipes.md"
    text = "\n".join(block for language in ("sh", "dockerfile", "ini") for block in code_blocks(page, language))
    text = re.sub(r'[",\[\]]', "", text)  # as a shell has them, and a Dockerfile's lists
    return re.findall(r"\bkvsd ((?:init|serve|ping|set|get|keys|delete|table)\b[^\n|]*)", text)


def test_the_commands_of_recipes_have_their_options() -> None:
    commands = commands_of_recipes()
    assert len(commands) >= 6
    for command in commands:
        words = command.split()
        shown = subprocess.run(
            [sys.executable, "-m", "kvsd", words[0], "--help"], capture_output=True, text=True, timeout=30, check=True
        )
        for option in re.findall(r"(?<!\S)--[a-z-]+", command):
            assert option in shown.stdout, command


def test_the_commands_about_certificates_print_what_the_page_shows(tmp_path: Path) -> None:
    with sample_server(tmp_path):
        pass
    for block in console_blocks(DOCS / "certificates.md"):
        assert_prints(block, tmp_path)


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("**/*.md")), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target
