"""One image for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ratestream import __version__
from tests.support.containers import Engine, require_containers

IMAGE = f"ratestream:{__version__}"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Has `IMAGE`, built from the repository's Dockerfile."""
    require_containers()
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        engine.build(IMAGE)
        yield engine
    finally:
        engine.clear()
