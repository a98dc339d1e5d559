"""How commands reach a running `ratestream up`: operations over a Unix socket in its data folder.

A connection carries one operation and its answer, each one line of JSON: `{"result": …}`, or
`{"error": …}` with the line that people see. Who may open the socket, its owner alone, may do all
that the process may.

Each bound leaves room for those inside it:

    125 s  `ask`, for the request and its answer
    120 s  an operation (`OPERATION_SECONDS`)
     45 s  one check of the doctor (`doctor.CHECK_SECONDS`)
     30 s  reading dead letters; waiting for a group's coordinator
     10 s  a question to Kafka (`kafka.request_timeout`); 5 s a connection to Postgres, or a
           service's health
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ratestream.operations.advice import advised
from ratestream.operations.deployment import Deployment, Operation
from ratestream.operations.errors import OperationError
from ratestream.operations.registry import decode_operation, encode_operation, result_type
from ratestream.settings import SettingsError, runtime_folder
from ratestream.storage.errors import StorageError
from ratestream.streaming import StreamingError

REQUEST_BYTES = 1024 * 1024
ANSWER_BYTES = 64 * 1024 * 1024
REQUEST_SECONDS = 5.0
OPERATION_SECONDS = 120.0
OPERATIONS_AT_ONCE = 16

_NAME = "control.sock"
_FOLDER_PREFIX = "ratestream-"
_SOCKET_PATH_BYTES = 100
_EXPECTED = (OperationError, SettingsError, StorageError, StreamingError)

R = TypeVar("R")


class Answer(msgspec.Struct, omit_defaults=True):
    """What goes back: one of the two."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str | None = None


@asynccontextmanager
async def serving(data_dir: Path, deployment: Deployment) -> AsyncIterator[None]:
    """Answer for as long as the block runs. The caller holds the data folder's lock."""
    path = data_dir / _NAME
    _remove(path)  # left by one that was killed
    folder = _short_folder(path)
    listener = _listening(folder / _NAME)
    if folder != data_dir:
        path.symlink_to(folder / _NAME)
    slots = asyncio.Semaphore(OPERATIONS_AT_ONCE)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with slots:
            with suppress(ConnectionError):
                writer.write(await _answered(reader, deployment) + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, sock=listener, limit=REQUEST_BYTES)
    try:
        yield
    finally:
        server.close()
        _remove(path)


async def ask(data_dir: Path, operation: Operation[R]) -> R:
    """Have the `ratestream up` of this folder do it. Raises `OperationError` with what it said,
    or when it ended meanwhile."""
    try:
        async with asyncio.timeout(OPERATION_SECONDS + REQUEST_SECONDS):
            line = await _exchange(data_dir, encode_operation(operation))
    except (TimeoutError, OSError, asyncio.LimitOverrunError, ValueError) as error:
        reason = "took too long" if isinstance(error, TimeoutError) else f"was cut off ({error})"
        raise OperationError(f"the ratestream up of {data_dir}: the answer {reason}") from error
    if not line.endswith(b"\n"):
        raise OperationError(f"the ratestream up of {data_dir} gave no answer: see its log")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error is not None:
        raise OperationError(answer.error)
    result: R = msgspec.json.decode(answer.result, type=result_type(operation))
    return result


def is_served(data_dir: Path) -> bool:
    """Whether a `ratestream up` of this folder takes operations now."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(_reachable(data_dir)))
        except OSError:
            return False
    return True


async def _exchange(data_dir: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(_reachable(data_dir), limit=ANSWER_BYTES)
    try:
        writer.write(request + b"\n")
        await writer.drain()
        return await reader.readline()
    finally:
        writer.close()


async def _answered(reader: asyncio.StreamReader, deployment: Deployment) -> bytes:
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            request = await reader.readline()
        operation = decode_operation(request)
        async with asyncio.timeout(OPERATION_SECONDS):
            result: Any = await operation.run(deployment)
    except TimeoutError:
        return _error(f"no result within {OPERATION_SECONDS:g} s")
    except ValueError:
        return _error(f"an operation of more than {REQUEST_BYTES} bytes")
    except _EXPECTED as error:
        return _error(" ".join(advised(error, deployment).split()))
    return msgspec.json.encode(Answer(msgspec.Raw(msgspec.json.encode(result))))


def _error(text: str) -> bytes:
    return msgspec.json.encode(Answer(error=text))


def _listening(path: Path) -> socket.socket:
    """Nobody can connect before it listens, and then only its owner may."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(OPERATIONS_AT_ONCE)
    except OSError:
        listener.close()
        raise
    return listener


def _short_folder(path: Path) -> Path:
    """The path's own folder, unless the system's limit for socket paths makes a link to a shorter
    one necessary."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path.parent
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=runtime_folder()))


def _remove(path: Path) -> None:
    """The socket, and if it was reached by a link, the folder made for it."""
    if path.is_symlink():
        target = path.readlink()
        if target.parent.name.startswith(_FOLDER_PREFIX):
            target.unlink(missing_ok=True)
            with suppress(OSError):  # it is gone, or holds what is not ours
                target.parent.rmdir()
    path.unlink(missing_ok=True)


def _reachable(data_dir: Path) -> Path:
    path = data_dir / _NAME
    return path.readlink() if path.is_symlink() else path
