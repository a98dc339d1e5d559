"""The client that asks the cluster questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.connections import Connections, Reachability
from ratestream.streaming.kafka.errors import configuring, error_of


class Admin:
    """librdkafka's admin client, for any thread. Nobody polls it between two questions, so what
    its connections have to say is taken in with each."""

    def __init__(self, kafka: KafkaConfig, reachability: Reachability) -> None:
        self._connections = Connections(kafka, reachability)
        settings = {
            **kafka.settings("ratestream-admin"),
            "log_level": 0,
            "error_cb": self._connections.on_error,
            **kafka.extra,
        }
        with configuring(kafka):
            self.client = AdminClient(settings)

    @contextmanager
    def asking(self, question: str, *, look: bool = False) -> Iterator[None]:
        """With `look` a certificate that is not trusted is looked at."""
        self.client.poll(0)
        try:
            yield
        except KafkaException as exc:
            self.client.poll(0)
            raise self._connections.error(f"asked {question}", error_of(exc), look=look) from exc
        self._connections.are_well()

    def close(self) -> None:
        with self.client:  # its only way to close
            pass

    def is_refused(self) -> bool:
        self.client.poll(0)
        return self._connections.are_refused
