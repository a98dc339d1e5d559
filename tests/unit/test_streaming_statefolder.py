"""Instances that share a data folder: each has a folder of its own, and can take over another's."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest

from ratestream.streaming import App, StateError, Stream, WorkerConfig
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.statefolder import StateFolder
from ratestream.streaming.testing import AppTester

NOBODY = 65_534
NAMES = [f"word-{number}" for number in range(40)]
HOLD = """
import sys
from pathlib import Path
from ratestream.streaming.statefolder import StateFolder
folder = StateFolder(Path(sys.argv[1]), 16)
print(folder.path.name, flush=True)
sys.stdin.read()
"""


def counting_app() -> App:
    app = App("counter")
    words = app.topic("words", value_type=str)
    counts_out = app.topic("counts", value_type=int)
    counts = app.Table("counts", value_type=int, default=int, partitions_of=words)

    @app.agent(words)
    async def count(stream: Stream[str]) -> None:
        async for word in stream:
            counts[word] += 1
            await counts_out.send(key=word, value=counts[word])

    return app


def instance(broker: LocalBroker, data_dir: Path, max_instances: int = 16) -> AppTester:
    config = WorkerConfig(data_dir=str(data_dir), commit_interval=0.02, max_instances=max_instances)
    return AppTester(counting_app(), broker, config)


async def say_all(tester: AppTester) -> None:
    words = tester.app.topics["words"]
    tester.write([words.encode(name, name) for name in NAMES])
    await tester.settle()


def counted(tester: AppTester) -> set[tuple[int, ...]]:
    """Which runs of counts there are, over all words."""
    by_word: dict[bytes | None, list[int]] = {}
    for record in tester.records("counts"):
        by_word.setdefault(record.key, []).append(int(record.value or b""))
    assert len(by_word) == len(NAMES)
    return set(map(tuple, by_word.values()))


def folders(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "counter").iterdir())


@pytest.mark.parametrize("count", [2, 3])
def test_instances_on_one_data_folder_count_like_one(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        instances = [instance(broker, tmp_path) for _ in range(count)]
        for started in instances:
            await started.__aenter__()
            await say_all(instances[0])
        assert folders(tmp_path) == [str(number) for number in range(count)]
        assert counted(instances[0]) == {tuple(range(1, count + 1))}
        for started in instances:
            await started.__aexit__()
        broker.close()

    asyncio.run(scenario())


def test_who_stays_takes_over_what_another_instance_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        first, second = instance(broker, tmp_path), instance(broker, tmp_path)
        await first.__aenter__()
        await second.__aenter__()
        await say_all(second)
        await first.__aexit__()
        await say_all(second)
        assert counted(second) == {(1, 2)}
        async with instance(broker, tmp_path) as third:
            await say_all(third)
            assert counted(third) == {(1, 2, 3)}
        assert folders(tmp_path) == ["0", "1"]
        await second.__aexit__()
        broker.close()

    asyncio.run(scenario())


def test_an_instance_too_many_is_told_which_setting_allows_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        async with instance(broker, tmp_path, max_instances=1):
            extra = instance(broker, tmp_path, max_instances=1)
            for step in (extra.__aenter__, extra.__aexit__):
                with pytest.raises(StateError, match=r"shared by 1 instances.*max_instances"):
                    await step()
        broker.close()

    asyncio.run(scenario())


def test_an_app_without_tables_needs_no_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = App("plain")
        app.topic("words", value_type=str)
        async with AppTester(app, config=WorkerConfig(data_dir=str(tmp_path / "none"))):
            assert not (tmp_path / "none").exists()

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"file cannot be written \(Not a directory\)"):
        StateFolder(tmp_path / "file", 16)


@contextmanager
def stores_of_somebody_else(folder_mode: int) -> Iterator[Path]:
    """An app's folder, and in it a table's stores that this user, never root, may only look at."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "counts").mkdir()
        (folder / "counts").chmod(0o555)
        folder.chmod(folder_mode)
        os.seteuid(user or NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_folder_of_somebody_else_is_named_with_what_to_do() -> None:
    with stores_of_somebody_else(0o555) as folder, pytest.raises(StateError) as failure:
        StateFolder(folder, 16)
    told = str(failure.value)
    assert told.startswith(f"the state folder {folder} cannot be written (Permission denied): ")
    assert f"(chown -R {os.geteuid() or NOBODY})" in told


def test_stores_of_somebody_else_are_named_with_what_to_do() -> None:
    with stores_of_somebody_else(0o777) as folder:
        own = StateFolder(folder, 16)
        with pytest.raises(StateError) as failure:
            own.adopt(["counts"])
        own.close()
    told = str(failure.value)
    assert told.startswith(f"the state folder {folder / 'counts'} cannot be moved to ")
    assert f"(chown -R {os.geteuid() or NOBODY})" in told
    assert "its table is rebuilt from the changelog" in told


def test_instances_that_take_over_at_once_lose_nothing(tmp_path: Path) -> None:
    tables = [f"table-{number}" for number in range(300)]
    for table in tables:
        (tmp_path / table).mkdir()
        (tmp_path / table / "0").write_text(table)
    instances = [StateFolder(tmp_path, 16) for _ in range(4)]
    together = Barrier(len(instances))

    def adopt(instance: StateFolder) -> None:
        together.wait()
        instance.adopt(tables)

    with ThreadPoolExecutor(len(instances)) as threads:
        list(threads.map(adopt, instances))
    stores = sorted(path.read_text() for path in tmp_path.glob("*/table-*/0"))
    assert stores == sorted(tables)
    assert len({path.parts[-3] for path in tmp_path.glob("*/table-*/0")}) > 1
    for instance in instances:
        instance.close()


def test_kill_9_frees_the_folder(tmp_path: Path) -> None:
    def hold() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    holders = [hold()]
    try:
        assert read_number(holders[0]) == "0"
        holders.append(hold())
        assert read_number(holders[1]) == "1"
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        holders.append(hold())
        assert read_number(holders[2]) == "0"
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def read_number(process: subprocess.Popen[str]) -> str:
    """Behind what is logged."""
    assert process.stdout is not None
    return next(line.strip() for line in process.stdout if line.strip().isdigit())


def old_layout(data_dir: Path) -> None:
    """As ratestream 0.1 left it: the stores directly in the app's folder."""
    stores = data_dir / "counter" / "0" / "counts"
    stores.rename(data_dir / "counter" / "counts")
    shutil.rmtree(data_dir / "counter" / "0")


def test_the_stores_of_the_version_before_are_taken_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        async with instance(broker, tmp_path) as before:
            await say_all(before)
        old_layout(tmp_path)
        async with instance(broker, tmp_path) as after:
            await say_all(after)
            assert counted(after) == {(1, 2)}
            restored = after.app.registry.get_sample_value(
                "ratestream_restored_records_total", {"table": "counts"}
            )
            assert restored == 0
        assert folders(tmp_path) == ["0"]
        broker.close()

    asyncio.run(scenario())


def test_stores_of_the_version_before_that_come_back_do_no_harm(tmp_path: Path) -> None:
    """Someone went back to 0.1 for a while: the changelog is what counts."""
    own = StateFolder(tmp_path, 16)
    (own.path / "counts").mkdir()
    (tmp_path / "counts" / "0").mkdir(parents=True)
    own.adopt(["counts"])
    own.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "counts"]
    assert list((own.path / "counts").iterdir()) == []
