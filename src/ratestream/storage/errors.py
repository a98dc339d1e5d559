"""Every error of the storage layer.

StorageError
├── DatabaseUnavailableError   Postgres does not answer, or refuses for now; try again
│   ├── DatabaseAccessError    it refuses this user or this connection until somebody acts
│   └── LockTimeoutError       another transaction holds what this one needs
├── UnstorableError            values that no column takes; trying again cannot help
├── RepeatedRowsError          rows that are there already
├── SchemaError                the database was made by another version of ratestream
├── ClusterMismatchError       the database holds rows of another Kafka cluster
├── TopicMismatchError         the database keeps the offsets of another topic of the same name
└── EmbeddedPostgresError      the Postgres from the wheel cannot run here (`embedded.py`)
"""

from __future__ import annotations

from ratestream.streaming import ConfigurationError


class StorageError(Exception):
    """The root of this tree."""


class DatabaseUnavailableError(StorageError):
    """Postgres is away, starting, stopping, overloaded or not yet migrated: nothing was written,
    or it is unknown whether it was. Trying again may help."""


class DatabaseAccessError(DatabaseUnavailableError):
    """The login, the database's name, a privilege or a certificate is wrong, on this side or on
    the other. At the start that is a mistake to be told; later it may be a password or a
    certificate that is being replaced, and is waited for like an outage."""


class LockTimeoutError(DatabaseUnavailableError):
    """Another transaction has held what this one needs for `DatabaseOptions.lock_timeout`; nothing
    was written."""


class UnstorableError(StorageError):
    """At least one value of the batch can never be stored; nothing of the batch was."""


class RepeatedRowsError(StorageError):
    """At least one row of the batch is there already; nothing of the batch was written."""


class SchemaError(StorageError):
    """The schema is newer than this program."""


class ClusterMismatchError(StorageError):
    """The ids in this database are offsets of another cluster: they would collide with ours."""


class TopicMismatchError(StorageError, ConfigurationError):
    """The offsets in this database are of a topic that was deleted, or of another cluster's."""
