"""A stream runtime: Faust's programming model over batches and transactions.

app = App("averages", processing_guarantee="exactly_once")
quotes = app.topic("quotes", value_type=Quote)
sums = app.Table("sums", value_type=Decimal, default=Decimal, partitions_of=quotes)

@app.agent(quotes)
async def add(stream):
    async for quote in stream:
        sums[quote.pair] += quote.value

await Worker(app, broker, WorkerConfig()).run()
"""

from ratestream.streaming.app import App
from ratestream.streaming.errors import (
    AccessError,
    AgentError,
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    DecodeError,
    DeliveryError,
    FencedError,
    MessageTooLargeError,
    SetbackError,
    StalledError,
    StateError,
    StoreError,
    StreamingError,
    TopicError,
    TransactionAbortedError,
)
from ratestream.streaming.sinks import Move, OffsetKeeper
from ratestream.streaming.streams import Batch, Event, OnError, Stream
from ratestream.streaming.tables import Table
from ratestream.streaming.topics import Topic
from ratestream.streaming.types import (
    Broker,
    ConsumerConfig,
    OutgoingRecord,
    ProcessingGuarantee,
    ProducerConfig,
    Record,
    TopicPartition,
    TopicSpec,
    WorkerConfig,
)
from ratestream.streaming.worker import Worker, WorkerState

__all__ = [
    "AccessError",
    "AgentError",
    "App",
    "AuthorizationError",
    "Batch",
    "Broker",
    "BrokerError",
    "ConfigurationError",
    "ConsumerConfig",
    "DecodeError",
    "DeliveryError",
    "Event",
    "FencedError",
    "MessageTooLargeError",
    "Move",
    "OffsetKeeper",
    "OnError",
    "OutgoingRecord",
    "ProcessingGuarantee",
    "ProducerConfig",
    "Record",
    "SetbackError",
    "StalledError",
    "StateError",
    "StoreError",
    "Stream",
    "StreamingError",
    "Table",
    "Topic",
    "TopicError",
    "TopicPartition",
    "TopicSpec",
    "TransactionAbortedError",
    "Worker",
    "WorkerConfig",
    "WorkerState",
]
