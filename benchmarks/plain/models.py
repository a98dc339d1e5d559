"""The tables as an ORM has them, for what is written the plain way."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import DateTime, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Series(Base):
    __tablename__ = "series"

    pair: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)


class Stored:
    """What quotes and averages have in common."""

    origin_topic: Mapped[str] = mapped_column(primary_key=True)
    origin_partition: Mapped[int] = mapped_column(primary_key=True)
    origin_offset: Mapped[int] = mapped_column(primary_key=True)
    pair: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]
    value: Mapped[Decimal]
    observed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    stored_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )


class Quote(Stored, Base):
    __tablename__ = "quotes"


class Average(Stored, Base):
    __tablename__ = "averages"

    window_fill: Mapped[int]
