"""The README keeps its word: its commands print what it shows, and its examples run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ROOT, assert_prints, code_blocks, console_blocks, run_python, sample_server

README = ROOT / "README.md"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The README's folder with a server on a free port, started by the README's command."""
    assert "pip install . && kvsd serve --config config.yaml" in README.read_text("utf-8")
    with sample_server(tmp_path) as port:
        yield tmp_path, port


def test_the_commands_of_the_readme_print_what_it_shows(folder: tuple[Path, str]) -> None:
    path, port = folder
    blocks = console_blocks(README)
    assert sum(map(len, blocks)) >= 7
    for block in blocks:
        assert_prints(block, path, KVSD_PORT=port)


def test_the_python_examples_run(folder: tuple[Path, str]) -> None:
    path, port = folder
    blocks = code_blocks(README, "python")
    assert len(blocks) == 3
    for block in blocks:
        run_python(block, path, KVSD_PORT=port)
