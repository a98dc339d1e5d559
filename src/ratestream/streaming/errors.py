"""Every error the runtime raises.

StreamingError
├── ConfigurationError      the program or its settings are wrong; trying again cannot help
│   ├── TopicError          a topic is missing or has the wrong shape
│   └── StateError          a data folder belongs to someone else, or has another format
├── BrokerError             the broker said no, or nothing; trying again may help
│   ├── AccessError         the broker refuses who we are, or what we ask for
│   │   └── AuthorizationError  it knows who we are, and its ACLs do not allow it
│   ├── DeliveryError       a record was not acknowledged
│   ├── FencedError         another consumer owns the partition, or another producer the id now
│   ├── TransactionAbortedError  nothing of the transaction happened; it can be tried again
├── SetbackError            what is not committed has to be read again
├── StoreError              a table cannot be written to the disk; the changelog has it
├── DecodeError             bytes that are not what the topic declares
├── MessageTooLargeError    a record larger than the topic takes
├── AgentError              an agent's code raised, or returned
└── StalledError            nothing is committed any more, though there is something to read
"""

from __future__ import annotations

from collections.abc import Sequence


class StreamingError(Exception):
    """The root of this tree."""


class ConfigurationError(StreamingError):
    """The program or its settings are wrong: the worker stops, and trying again cannot help."""


class TopicError(ConfigurationError):
    """A topic is missing or has another number of partitions than it must have."""


class StateError(ConfigurationError):
    """A data folder belongs to another cluster, another process or another format version."""


class BrokerError(StreamingError):
    """The broker refused or did not answer in time; the worker backs off and tries again."""


class AccessError(BrokerError):
    """The broker refuses the client's certificate or password, or its own is not trusted. A worker
    that has never been let in ends with it; afterwards, as when a password is changed, it is
    waited for like an outage."""


class AuthorizationError(AccessError):
    """The broker's ACLs do not allow what was asked. It ends a worker that has never committed, or
    without agents was never given partitions; and one whose timers, tasks and pages send and were
    never acknowledged. Once that has worked, it is waited for like an outage."""


class DeliveryError(BrokerError):
    """At least one record was not acknowledged: nothing that depends on it may be committed."""


class FencedError(BrokerError):
    """A commit for a partition that this consumer no longer owns, or by a producer whose
    transactional id another one has taken."""


class TransactionAbortedError(BrokerError):
    """Nothing of the transaction happened, and its producer can begin another."""


class SetbackError(StreamingError):
    """What is not committed cannot be, and has to be read again: partitions were lost while their
    records were worked on, agents were too slow for a rebalance, or a sink has been written by
    another instance. The worker goes back to what is committed by itself."""


class StoreError(StreamingError):
    """A table's store cannot be written, as on a full disk. What is committed is in the changelog:
    the store catches up from there once it can be written."""


class DecodeError(StreamingError):
    """The bytes of a record are not what its topic declares. The message is the reason."""


class MessageTooLargeError(StreamingError):
    """A record exceeds its topic's `max_message_bytes`; nothing was sent."""


class AgentError(StreamingError):
    """An agent raised or returned; names the agent, and the record it was at. `records` are those
    it may have failed for, each as (topic, partition, offset): several inside `take`."""

    def __init__(
        self, message: str, agent: str = "", records: Sequence[tuple[str, int, int]] = ()
    ) -> None:
        super().__init__(message)
        self.agent = agent
        self.records = tuple(records)


class StalledError(StreamingError):
    """A worker has committed nothing for `progress_timeout`, though there is something to read and
    the broker answers: it ends, since waiting has not helped."""
