"""Newest quotes and current averages over HTTP, as FastAPI's tutorial would have it: a session of
SQLAlchemy for each request, its objects turned into answers by pydantic.

    python -m benchmarks.plain.api PORT DATABASE_URL

Its two statements are those of api_gateway: one probe of the index for each series.
"""

import sys
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select, true
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import aliased

from benchmarks.plain.models import Average, Quote, Series


class Item(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    pair: str
    source: str
    value: Decimal
    observed_at: datetime
    received_at: datetime
    stored_at: datetime


class AverageItem(Item):
    window_fill: int


def make_api(url: str) -> FastAPI:
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url)
    )
    sessions = async_sessionmaker(engine)
    api = FastAPI()

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as opened:
            yield opened

    Session = Annotated[AsyncSession, Depends(session)]  # noqa: N806 - a type
    Limit = Annotated[int, Query(ge=1, le=1000)]  # noqa: N806 - a type

    @api.get("/pairs/currencies", response_model=list[Item])
    async def currencies(session: Session, pair_name: str, limit: Limit = 10) -> Sequence[Quote]:
        return await newest(session, Quote, pair_name, limit)

    @api.get("/pairs/average", response_model=list[AverageItem])
    async def average(
        session: Session, pair_name: str | None = None, limit: Limit = 10
    ) -> Sequence[Average]:
        newest_one = (
            select(Average)
            .where(Average.pair == Series.pair, Average.source == Series.source)
            .order_by(Average.received_at.desc())
            .limit(1)
            .lateral()
        )
        current = aliased(Average, newest_one)
        statement = (
            select(current)
            .select_from(Series)
            .join(newest_one, true())
            .order_by(Series.pair, Series.source)
            .limit(limit)
        )
        if pair_name is not None:
            statement = statement.where(Series.pair == pair_name)
        return (await session.scalars(statement)).all()

    return api


async def newest(
    session: AsyncSession, model: type[Quote], pair: str, limit: int
) -> Sequence[Quote]:
    of_series = (
        select(model)
        .where(model.pair == Series.pair, model.source == Series.source)
        .order_by(model.received_at.desc())
        .limit(limit)
        .lateral()
    )
    quote = aliased(model, of_series)
    statement = (
        select(quote)
        .select_from(Series)
        .join(of_series, true())
        .where(Series.pair == pair)
        .order_by(quote.received_at.desc())
        .limit(limit)
    )
    found = (await session.scalars(statement)).all()
    if not found:
        raise HTTPException(404)
    return found


if __name__ == "__main__":
    uvicorn.run(make_api(sys.argv[2]), port=int(sys.argv[1]), access_log=False, log_level="warning")
