"""Apache Kafka behind the runtime's broker protocol: the only importer of confluent_kafka.

It owns librdkafka's settings (`config.py`), its callbacks (`connections.py`), and the translation
of its errors (`errors.py`). What librdkafka does by itself is left to it: connections, retries,
heartbeats, batching, and fetching ahead.

Consumers read committed records only. Transactions (`transactions.py`) are librdkafka's, around
what the producer sends.
"""

from ratestream.streaming.kafka.broker import KafkaBroker
from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.consumer import KafkaConsumer
from ratestream.streaming.kafka.producer import KafkaProducer
from ratestream.streaming.kafka.transactions import KafkaTransactionalProducer

__all__ = [
    "KafkaBroker",
    "KafkaConfig",
    "KafkaConsumer",
    "KafkaProducer",
    "KafkaTransactionalProducer",
]
