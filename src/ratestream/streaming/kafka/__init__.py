"""Apache Kafka behind the runtime's broker protocol: the only importer of confluent_kafka.

It owns librdkafka's settings (`config.py`), its callbacks (`connections.py`), and the translation
of its errors (`errors.py`). What librdkafka does by itself is left to it: connections, retries,
heartbeats, batching, and fetching ahead.

A transactional producer is `KafkaProducer` with `transactional.id` among its settings, and its
begin, send-offsets and commit beside `flush`; consumers read committed records already.
"""

from ratestream.streaming.kafka.broker import KafkaBroker
from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.consumer import KafkaConsumer
from ratestream.streaming.kafka.producer import KafkaProducer

__all__ = ["KafkaBroker", "KafkaConfig", "KafkaConsumer", "KafkaProducer"]
