"""The tables, as the newest migration leaves them; a test compares the two.

`quotes` and `averages` only ever grow (and lose their oldest rows to retention). A row's key is
where its snapshot stands on `src-data`, and its pair: a record that is read again finds its row
there already. `series` lists which pairs exist from which sources; with it one index answers
"newest of a pair", "newest of each pair" and "first and last of each pair" with one short probe
per series, however many rows there are, and nothing has to be kept up to date beside the rows.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
)

metadata = MetaData()
_moment = DateTime(timezone=True)

ORIGIN = ("origin_topic", "origin_partition", "origin_offset")
"""The columns that name a snapshot on `src-data`."""


def _history(name: str, *own: Column[int]) -> Table:
    return Table(
        name,
        metadata,
        Column("pair", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("value", Numeric, nullable=False),
        *own,
        Column("observed_at", _moment, nullable=False),
        Column("received_at", _moment, nullable=False),
        Column("stored_at", _moment, nullable=False, server_default=func.clock_timestamp()),
        Column("origin_topic", Text, nullable=False),
        Column("origin_partition", Integer, nullable=False),
        Column("origin_offset", BigInteger, nullable=False),
        PrimaryKeyConstraint(*ORIGIN, "pair", name=f"{name}_pkey"),
        # NaN is above Infinity. asyncpg sends what is beyond NUMERIC as zero: refused here too.
        CheckConstraint("value > 0 AND value < 'Infinity'", name=f"{name}_value_is_a_rate"),
        Index(f"{name}_newest", "pair", "source", "received_at"),
    )


quotes = _history("quotes")

averages = _history("averages", Column("window_fill", Integer, nullable=False))
"""`window_fill` is how many quotes the mean is of."""

series = Table(
    "series",
    metadata,
    Column("pair", Text, nullable=False),
    Column("source", Text, nullable=False),
    PrimaryKeyConstraint("pair", "source", name="series_pkey"),
)

origin_cluster = Table(
    "origin_cluster",
    metadata,
    Column("only_row", Boolean, nullable=False, server_default="true"),
    Column("cluster_id", Text, nullable=False),
    Column("claimed_at", _moment, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("only_row", name="origin_cluster_pkey"),
    CheckConstraint("only_row", name="origin_cluster_has_one_row"),
)
"""The Kafka cluster whose offsets the origins are."""

consumer_offsets = Table(
    "consumer_offsets",
    metadata,
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("next_offset", BigInteger, nullable=True),
    Column("updated_at", _moment, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("topic", "partition", name="consumer_offsets_pkey"),
)
"""For each partition that is read, the first record whose rows are not there yet; NULL before any
is. It moves in the transactions that add the rows. `topic_id` is "cluster/topic", as Kafka names
them for ever: offsets mean nothing elsewhere."""
