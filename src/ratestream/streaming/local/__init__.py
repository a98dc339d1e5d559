"""A broker inside this process: the protocol of `types.py` over one SQLite database.

SQLite does the storing, the atomicity and the crash safety (`storage.py`). The rest are readers
and writers of logs, who reads what in a group (`groups.py`), and retention and compaction
(`cleaner.py`). For one machine and one process; whoever outgrows it takes Kafka.
"""

from ratestream.streaming.local.broker import LocalBroker
from ratestream.streaming.local.storage import LocalBrokerConfig

__all__ = ["LocalBroker", "LocalBrokerConfig"]
