"""Where sends go: buffered until the commit from agents, acknowledged one by one from elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from ratestream.streaming.errors import BrokerError
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.types import (
    Broker,
    OutgoingRecord,
    Producer,
    ProducerConfig,
    WorkerConfig,
)

_MAX_WAITING = 10_000
_MAX_BATCH = 1_000

log = structlog.get_logger("ratestream.outbox")


class BufferedOutbox:
    """What agents have sent since the last commit. When it is full, `put` waits until `spill` has
    given the records to the producer."""

    def __init__(
        self, config: WorkerConfig, spill: Callable[[list[OutgoingRecord]], Awaitable[None]]
    ) -> None:
        self._max_records = config.output_max_records
        self._max_bytes = config.output_max_bytes
        self._spill = spill
        self._records: list[OutgoingRecord] = []
        self._bytes = 0
        self.holds_everything = False
        """While draining: spilling needs the broker thread, which is waiting for the drain."""

    def add(self, record: OutgoingRecord) -> None:
        self._records.append(record)
        self._bytes += len(record.value or b"")

    async def put(self, record: OutgoingRecord) -> None:
        self.add(record)
        full = len(self._records) >= self._max_records or self._bytes >= self._max_bytes
        if full and not self.holds_everything:
            await self._spill(self.take())

    def take(self) -> list[OutgoingRecord]:
        records, self._records = self._records, []
        self._bytes = 0
        return records


class AcknowledgedOutbox:
    """Sends from timers, tasks and pages: `put` returns when the broker has the record.

    Records that wait together are sent together. A broker that fails is tried again until it
    answers, so a record may be written twice, and none is dropped; `trouble` says why meanwhile.
    """

    def __init__(
        self, client_id: str, broker: Broker, config: WorkerConfig, metrics: WorkerMetrics
    ) -> None:
        self._client_id = client_id
        self._broker = broker
        self._config = config
        self._metrics = metrics
        self._queue: asyncio.Queue[tuple[OutgoingRecord, asyncio.Future[None]]] = asyncio.Queue(
            _MAX_WAITING
        )
        self._producer: Producer | None = None
        self.trouble = ""

    async def put(self, record: OutgoingRecord) -> None:
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put((record, acknowledged))
        await acknowledged

    async def run(self) -> None:
        """Send what is put, until cancelled."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"{self._client_id}-outbox")
        try:
            while True:
                batch = [await self._queue.get()]
                while not self._queue.empty() and len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
                await self._deliver(executor, [record for record, _ in batch])
                for _, acknowledged in batch:
                    if not acknowledged.done():
                        acknowledged.set_result(None)
        finally:
            executor.submit(self._close)
            executor.shutdown(wait=False)

    async def _deliver(self, executor: ThreadPoolExecutor, records: list[OutgoingRecord]) -> None:
        loop = asyncio.get_running_loop()
        delay = self._config.retry_backoff_min
        while True:
            try:
                await loop.run_in_executor(executor, self._send, records)
            except BrokerError as error:
                if not self.trouble:
                    log.warning("send_failed", service=self._client_id, error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(delay)
                delay = min(self._config.retry_backoff_max, delay * 2)
                continue
            self.trouble = ""
            return

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
        except BrokerError:
            self._close()  # a producer that failed may hold records it would send again
            raise
        for record in records:
            self._metrics.records_out.labels(record.topic).inc()

    def _close(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None
