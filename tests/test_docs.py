"""The pages keep their word: what is written by a program is current, and examples run."""

from __future__ import annotations

import html
import os
import re
import runpy
from pathlib import Path

import pytest

from kvsd.config import SETTINGS

DOCS = Path(__file__).parent.parent / "docs"


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


@pytest.mark.parametrize("page", sorted(DOCS.glob("**/*.md")), ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target
