"""Where an operation is done: here, against servers that the settings name, or inside the running
`ratestream up` of the data folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

from ratestream.cli.builders import builders
from ratestream.cli.options import KAFKA, POSTGRES
from ratestream.operations.advice import advised
from ratestream.operations.deployment import Deployment, Operation
from ratestream.operations.errors import OperationError
from ratestream.settings import PostgresSettings, Settings, variable
from ratestream.storage.errors import StorageError
from ratestream.streaming import StreamingError

R = TypeVar("R")


class Place(Protocol):
    """`where` is in words, as the first line of every output."""

    where: str

    async def perform(self, operation: Operation[R]) -> R:
        """Raises `OperationError` with the words of whatever the operation raises."""
        ...


class Here:
    """In this process."""

    def __init__(self, where: str, deployment: Deployment) -> None:
        self.where = where
        self._deployment = deployment

    async def perform(self, operation: Operation[R]) -> R:
        try:
            return await operation.run(self._deployment)
        except (StreamingError, StorageError) as error:
            raise OperationError(advised(error, self._deployment)) from error


class RunningUp:
    """In the `ratestream up` that has this data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.where = f"in the ratestream up of {data_dir.absolute()}"
        self._data_dir = data_dir

    async def perform(self, operation: Operation[R]) -> R:
        from ratestream.up.control import ask

        return await ask(self._data_dir, operation)


@contextmanager
def place_of(
    settings: Settings, needs: Sequence[str], *, changing: bool = False
) -> Iterator[Place]:
    """Servers that the settings name are used; for want of one of those that are needed, a
    running `ratestream up`; for want of that, the defaults of the settings, unless something is
    to be changed there: raises `OperationError`."""
    from ratestream.streaming.kafka import KafkaBroker
    from ratestream.up.control import is_served

    unset = [each for each in needs if not settings.is_set(each)]
    if unset and is_served(settings.data_dir):
        yield RunningUp(settings.data_dir)
        return
    alone = f"no ratestream up runs in {settings.data_dir.absolute()}"
    if unset and changing:
        raise OperationError(
            f"{alone}, and {' and '.join(unset)} is not set: start it, name its folder with "
            f"--data-dir, or set {' and '.join(map(variable, unset))}"
        )
    addresses = {
        KAFKA: f"Kafka {settings.kafka.bootstrap_servers}",
        POSTGRES: f"Postgres {_address(settings.postgres)}",
    }
    names = (addresses[each] + (" (default)" if each in unset else "") for each in needs)
    where = (f"{alone}; " if unset else "") + "at " + " and ".join(names)
    with ExitStack() as stack:

        def connect() -> KafkaBroker:
            return stack.enter_context(closing(KafkaBroker(settings.kafka.config())))

        yield Here(where, Deployment(settings, connect, builders()))


def _address(postgres: PostgresSettings) -> str:
    """Without user, password and parameters."""
    url = urlsplit(postgres.dsn())
    host = url.netloc.rpartition("@")[2] or parse_qs(url.query).get("host", ["(default host)"])[0]
    return f"{host}{url.path}"
