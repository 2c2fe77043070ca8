"""Servers to be attacked: in this process, or as a Target in one of their own."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kvsd.server import session

from .target import Target

DESCRIPTORS = 4_096

Launch = Callable[..., Target]


@pytest.fixture(scope="session", autouse=True)
def _many_descriptors() -> Iterator[None]:
    """A thousand connections have two ends; ours are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def launch(tmp_path: Path, certificate_dir: Path) -> AsyncIterator[Launch]:
    """Starts a Target, with settings. At the end it is stopped with its peers still there, and must have no fault."""
    targets: list[Target] = []

    def launch(**given: object) -> Target:
        target = Target(tmp_path, certificate_dir, **given)
        target.__enter__()
        targets.append(target)
        return target

    yield launch
    for target in targets:
        try:
            await asyncio.to_thread(target.__exit__, None)
        finally:
            await target.close_peers()


@pytest.fixture
def quick_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LINGER_SECONDS", 0.05)
