"""A scene for each test, and a daemon in it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.scene import Running, Scene, open_scene


@pytest.fixture
async def scene(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path) as scene:
        yield scene


@pytest.fixture
async def daemon(scene: Scene) -> Running:
    return await scene.daemon()
