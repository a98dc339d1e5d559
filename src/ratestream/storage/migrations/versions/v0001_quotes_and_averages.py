"""Quotes, averages, their series, and the cluster they come from."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_history("quotes")
    _create_history("averages", sa.Column("window_fill", sa.Integer, nullable=False))
    op.create_table(
        "series",
        sa.Column("pair", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pair", "source", name="series_pkey"),
    )
    op.create_table(
        "origin_cluster",
        sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("cluster_id", sa.Text, nullable=False),
        sa.Column("claimed_at", _moment(), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("only_row", name="origin_cluster_pkey"),
        sa.CheckConstraint("only_row", name="origin_cluster_has_one_row"),
    )


def _create_history(name: str, *own: sa.Column[int]) -> None:
    op.create_table(
        name,
        sa.Column("pair", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("value", sa.Numeric, nullable=False),
        *own,
        sa.Column("observed_at", _moment(), nullable=False),
        sa.Column("received_at", _moment(), nullable=False),
        sa.Column("stored_at", _moment(), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("origin_topic", sa.Text, nullable=False),
        sa.Column("origin_partition", sa.Integer, nullable=False),
        sa.Column("origin_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "origin_topic", "origin_partition", "origin_offset", "pair", name=f"{name}_pkey"
        ),
        sa.CheckConstraint("value > 0 AND value < 'Infinity'", name=f"{name}_value_is_a_rate"),
    )
    op.create_index(f"{name}_newest", name, ["pair", "source", "received_at"])


def _moment() -> sa.DateTime:
    return sa.DateTime(timezone=True)
