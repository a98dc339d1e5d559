"""Where sends go: buffered until the commit from agents, acknowledged one by one from elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Generator
from types import coroutine

import structlog

from ratestream.streaming.errors import (
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    DeliveryError,
    StreamingError,
)
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.threads import BrokerThread
from ratestream.streaming.types import (
    Broker,
    OutgoingRecord,
    Producer,
    ProducerConfig,
    WorkerConfig,
)

_MAX_WAITING = 10_000
_MAX_BATCH = 1_000

_ENDED = "the worker has stopped: nothing can be sent any more"
_Waiting = tuple[OutgoingRecord, asyncio.Future[None]]

log = structlog.get_logger("ratestream.outbox")


@coroutine
def _nothing() -> Generator[None, None, None]:
    yield from ()


_DONE = _nothing()
"""What there is nothing to wait for. Awaiting it takes no turn of the event loop, and no call of a
Python function; it can be done any number of times, because it has ended."""


class BufferedOutbox:
    """What agents have sent since the last commit. When it `is_full` they begin no further record
    until the commit; what one of them sends for a single record (or one list of `take`) must fit
    into as much again, or `put` raises `ConfigurationError`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._max_records = config.output_max_records
        self._max_bytes = config.output_max_bytes
        self._records: list[OutgoingRecord] = []
        self._bytes = 0
        self.is_full = False

    def add(self, *records: OutgoingRecord) -> None:
        self._records += records
        self._bytes += sum(record.size for record in records)
        self.is_full |= len(self._records) >= self._max_records or self._bytes >= self._max_bytes

    def put(self, record: OutgoingRecord) -> Awaitable[None]:
        self._records.append(record)
        self._bytes += record.size
        if self._bytes >= self._max_bytes or len(self._records) >= self._max_records:
            self.is_full = True
            self._check_bounds(record)
        return _DONE

    def _check_bounds(self, last: OutgoingRecord) -> None:
        if len(self._records) > 2 * self._max_records or self._bytes > 2 * self._max_bytes:
            raise ConfigurationError(
                f"more is sent for one record than output_max_records={self._max_records} and "
                f"output_max_bytes={self._max_bytes} allow, the last to {last.topic}"
            )

    def take(self) -> list[OutgoingRecord]:
        records, self._records = self._records, []
        self._bytes = 0
        self.is_full = False
        return records


class AcknowledgedOutbox:
    """Sends from timers, tasks and pages: `put` returns when the broker has the record.

    Records that wait together are sent together. A broker that fails is tried again until it
    answers, so a record may be written twice, and none is dropped; `trouble` says why meanwhile.
    What has never been allowed ends `run` with `ConfigurationError`. Once that or a cancellation
    has ended it, `put` raises the same, or `DeliveryError`, for those that wait as well.
    """

    def __init__(
        self, client_id: str, broker: Broker, config: WorkerConfig, metrics: WorkerMetrics
    ) -> None:
        self._client_id = client_id
        self._broker = broker
        self._config = config
        self._metrics = metrics
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(_MAX_WAITING)
        self._producer: Producer | None = None
        self._has_delivered = False
        self._end: StreamingError | None = None
        self.trouble = ""
        self.is_full = False

    async def put(self, record: OutgoingRecord) -> None:
        if self._end is not None:
            raise self._end
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put((record, acknowledged))
        if self._end is not None:  # while this waited for room
            self._fail_waiting([], self._end)
        await acknowledged

    async def run(self) -> None:
        """Send what is put, until cancelled. Raises `ConfigurationError`."""
        thread = BrokerThread(f"{self._client_id}-outbox")
        batch: list[_Waiting] = []
        try:
            while True:
                batch = [await self._queue.get()]
                while not self._queue.empty() and len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
                refusal = await self._deliver(thread, [record for record, _ in batch])
                if refusal is None or len(batch) == 1:
                    _answer(batch, refusal)
                    continue
                for each in batch:  # only the one that is at fault is refused
                    _answer([each], await self._deliver(thread, [each[0]]))
        except ConfigurationError as error:
            self._end = error
            raise
        finally:
            self._end = self._end or DeliveryError(_ENDED)
            self._fail_waiting(batch, self._end)
            thread.close(self._close)

    def _fail_waiting(self, batch: list[_Waiting], why: StreamingError) -> None:
        waiting = list(batch)
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        _answer(waiting, why)

    async def _deliver(
        self, thread: BrokerThread, records: list[OutgoingRecord]
    ) -> StreamingError | None:
        """None when the broker has them; why it never will, when trying again cannot help."""
        delay = self._config.retry_backoff_min
        while True:
            try:
                await thread.call(self._send, records)
            except BrokerError as error:
                if isinstance(error, AuthorizationError) and not self._has_delivered:
                    raise ConfigurationError(str(error)) from error
                if not self.trouble:
                    log.warning("send_failed", service=self._client_id, error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(delay)
                delay = min(self._config.retry_backoff_max, delay * 2)
                continue
            except StreamingError as error:
                return error
            self._has_delivered = True
            self.trouble = ""
            return None

    def _send(self, records: list[OutgoingRecord]) -> None:
        if self._producer is None:
            self._producer = self._broker.producer(
                ProducerConfig(
                    client_id=self._client_id, delivery_timeout=self._config.delivery_timeout
                )
            )
        try:
            self._producer.send(records)
            self._producer.flush()
        except StreamingError:
            self._close()  # a producer that failed may hold records it would send again
            raise
        self._metrics.count_sent(Counter(record.topic for record in records))

    def _close(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None


def _answer(batch: list[_Waiting], refusal: StreamingError | None) -> None:
    for _, acknowledged in batch:
        if acknowledged.done():
            continue
        if refusal is None:
            acknowledged.set_result(None)
        else:
            acknowledged.set_exception(refusal)
