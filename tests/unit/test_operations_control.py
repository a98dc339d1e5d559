"""The socket through which commands reach a running `ratestream up`."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from ratestream.cli.builders import builders
from ratestream.operations.deployment import Deployment
from ratestream.operations.errors import OperationError
from ratestream.operations.letters import ShowDeadLetter
from ratestream.operations.topics import CheckTopics, CreateTopics
from ratestream.settings import Settings
from ratestream.streaming.local import LocalBroker
from ratestream.up import control
from ratestream.up.control import ask, is_served, serving

TOPICS = 6
"""Of the six services: four between them, a changelog and the probe of transactions."""


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Deployment]:
    with closing(LocalBroker(None)) as broker:
        deployment = Deployment(Settings(), lambda: broker, builders())
        async with serving(folder, deployment):
            yield deployment


async def exchange(folder: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(folder / "control.sock")
    with closing(writer):
        writer.write(request)
        writer.write_eof()
        return await reader.read()


def test_an_operation_is_done_on_the_other_side(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as deployment:
            made = await ask(tmp_path, CreateTopics())
            assert [each.made for each in made] == [True] * TOPICS
            assert len(deployment.broker.describe_topics([each.name for each in made])) == TOPICS
            assert await ask(tmp_path, CheckTopics()) == await CheckTopics().run(deployment)

    asyncio.run(main())


def test_an_error_is_the_same_line(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as deployment:
            await CreateTopics().run(deployment)
            with pytest.raises(OperationError) as here:
                await ShowDeadLetter("0:0").run(deployment)
            with pytest.raises(OperationError) as there:
                await ask(tmp_path, ShowDeadLetter("0:0"))
            assert str(there.value) == str(here.value)

    asyncio.run(main())


def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path):
            mode = (tmp_path / "control.sock").stat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)

    asyncio.run(main())


def test_a_folder_with_a_long_name_is_reached_too(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()

    async def main() -> Path:
        async with served(folder):
            assert is_served(folder)
            assert len(await ask(folder, CreateTopics())) == TOPICS
            link = (folder / "control.sock").readlink()
            assert stat.S_IMODE(link.parent.stat().st_mode) == 0o700
            return link

    link = asyncio.run(main())
    assert not link.parent.exists()
    assert not is_served(folder)
    assert list(folder.iterdir()) == []


def test_the_short_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, folder = tmp_path / "own", tmp_path / ("long" * 25)
    own.mkdir()
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))

    async def main() -> None:
        async with served(folder):
            assert (folder / "control.sock").readlink().parent.parent == own

    asyncio.run(main())


def test_the_short_folder_of_a_killed_one_is_removed(tmp_path: Path) -> None:
    folder, left = tmp_path / ("long" * 25), tmp_path / "ratestream-left"
    other = tmp_path / "other"
    for each in (folder, left, other):
        each.mkdir()
        (each / "control.sock").touch()
    (folder / "control.sock").unlink()

    async def restart(target: Path) -> None:
        (folder / "control.sock").symlink_to(target / "control.sock")
        async with served(folder):
            assert is_served(folder)

    asyncio.run(restart(left))
    assert not left.exists()
    asyncio.run(restart(other))
    assert (other / "control.sock").exists()


def test_what_a_killed_one_left_is_no_hindrance(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))
    assert not is_served(tmp_path)

    async def main() -> None:
        async with served(tmp_path):
            assert is_served(tmp_path)

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_", [b"\n", b"nonsense\n", b'{"type": "Launch"}\n', b'{"type":"CheckTopics","x":1}\n']
)
def test_what_is_no_operation_is_refused(request_: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path):
            answer = await exchange(tmp_path, request_)
            assert b'{"error":"not an operation of this version of ratestream: ' in answer

    asyncio.run(main())


def test_a_request_that_is_too_long_harms_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path):
            with suppress(ConnectionError):  # it may be cut off before it has read the refusal
                answer = await exchange(tmp_path, b"x" * (control.REQUEST_BYTES * 3) + b"\n")
                assert b"an operation of more than 1048576 bytes" in answer
            assert len(await ask(tmp_path, CreateTopics())) == TOPICS

    asyncio.run(main())


def test_one_that_says_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.05)

    async def main() -> None:
        async with served(tmp_path):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
            with closing(writer):
                assert b'{"error":' in await reader.read()

    asyncio.run(main())


def test_one_that_ends_without_an_answer_is_told(tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(hang_up, tmp_path / "control.sock")
        async with server:
            with pytest.raises(OperationError, match=f"the ratestream up of {tmp_path}"):
                await ask(tmp_path, CheckTopics())

    asyncio.run(main())
