"""Room on a disk, also on one that does not answer."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import httpx
import pytest

from ratestream.streaming import App, WorkerConfig
from ratestream.streaming.disk import Disk
from ratestream.streaming.testing import AppTester

AT_ONCE = 1 | 2
"""MNT_FORCE and MNT_DETACH: whoever waits for the file system gets an error."""

LONGEST_SECONDS = 30.0


@pytest.fixture
def hanging_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in user space, whose user never answers."""
    folder = tmp_path / "hangs"
    folder.mkdir()
    system = ctypes.CDLL(None)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no file systems in user space here: {error.strerror}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    try:
        if system.mount(b"hangs", bytes(folder), b"fuse", 0, options.encode()) != 0:
            pytest.skip("needs the right to mount a file system")
        rescue = Timer(LONGEST_SECONDS, system.umount2, (bytes(folder), AT_ONCE))
        rescue.start()
        yield folder
        rescue.cancel()
        system.umount2(bytes(folder), AT_ONCE)
    finally:
        os.close(device)


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_its_parent(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "not" / "yet")
    assert 0 < disk.free_bytes() <= disk.size_bytes()


def test_a_disk_that_hangs_has_no_size(hanging_disk: Path) -> None:
    disk = Disk(hanging_disk / "state")
    assert math.isnan(disk.free_bytes())
    assert math.isnan(disk.size_bytes())


def test_a_disk_that_hangs_keeps_nobody_from_health_and_metrics(hanging_disk: Path) -> None:
    async def scenario() -> None:
        config = WorkerConfig(data_dir=str(hanging_disk / "state"))
        async with (
            AppTester(App("served"), config=config) as tester,
            httpx.AsyncClient(base_url=tester.worker.address) as client,
        ):
            metrics = await client.get("/metrics")
            assert "ratestream_disk_free_bytes NaN" in metrics.text
            assert (await client.get("/health/live")).status_code == 200

    asyncio.run(scenario())
