"""demo_server: a small HTTP rate source to try ratestream on.

It knows no Kafka. Rates change once a tick, with the time that passes and not with the questions
asked: all who ask within a tick get the same answer. The first question starts the first tick.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from ratestream import __version__
from ratestream.apidocs import serve_docs
from ratestream.rates.averages import decimal_text
from ratestream.rates.pair import parse_pair
from ratestream.settings import DemoServerSettings, Settings
from ratestream.sources.ecb_history import load_days
from ratestream.sources.feeds import Feed, Mode, Rates, Replay, Unrelated, Walk
from ratestream.streaming import App, ConfigurationError


def build(settings: Settings) -> App:
    """Serves `GET /pairs` and `GET /pairs/full`. Raises `ConfigurationError` when there is
    nothing to replay."""
    section = settings.demo_server
    app = App("demo_server")
    app.mount(make_api(make_feed(section), Ticks(section.tick_seconds)))
    return app


def make_feed(section: DemoServerSettings) -> Feed:
    pairs = [parse_pair(name) for name in section.pairs]
    if section.mode == "random":
        return Unrelated(pairs, section.seed)
    if section.mode == "walk":
        return Walk(pairs, section.seed)
    days = load_days(section.start_date, {code for pair in pairs for code in pair})
    if not days:
        raise ConfigurationError(
            f"demo_server.start_date {section.start_date}: the ECB data installed ends before it"
        )
    return Replay(pairs, days)


class Ticks:
    """Counts ticks of `seconds` since it was first asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start: float | None = None

    def now(self) -> int:
        if self._start is None:
            self._start = time.monotonic()
        return int((time.monotonic() - self._start) / self._seconds)


_EXAMPLE = {"USDRUB": "27.8686627055", "EURRUB": "36.115"}


class FullAnswer(BaseModel):
    """Rates, with where and when they are from. Times are UTC."""

    source: str = Field(
        description="Where the rates come from.",
        examples=["European Central Bank, euro foreign exchange reference rates"],
    )
    mode: Mode = Field(description="`replay` are real rates of another day; the others invented.")
    observed_at: datetime = Field(
        description="When the rates held: of a replayed day, 16:00 Central European Time.",
        examples=["2005-04-01T14:00:00Z"],
    )
    replayed_date: date | None = Field(
        description="The day being replayed; null in other modes.", examples=["2005-04-01"]
    )
    served_at: datetime = Field(description="When this was answered.")
    rates: dict[str, str] = Field(
        description="By pair, the price of one unit of its first currency in its second, as an "
        "exact decimal. A pair without a rate at that time is left out.",
        examples=[_EXAMPLE],
    )


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def _problem(description: str) -> dict[str, Any]:
    schema = Problem.model_json_schema()
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: _problem("No rates of that day."),
    422: _problem("`date` is no date."),
}
_SIMPLE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": _EXAMPLE}}}
}
DateParameter = Annotated[
    date | None,
    Query(alias="date", description="Rates of this day instead; in mode `replay` only."),
]


def make_api(feed: Feed, ticks: Ticks) -> FastAPI:
    api = FastAPI(
        title="ratestream demo_server",
        version=__version__,
        summary="A rate source to try ratestream on: not for real use.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            StarletteHTTPException: _on_http_error,
            RequestValidationError: _on_invalid_request,
        },
    )

    serve_docs(api)

    def rates_of(day: date | None) -> Rates:
        try:
            return feed.at(ticks.now()) if day is None else feed.on(day)
        except LookupError as error:
            raise HTTPException(404, str(error)) from None

    @api.get("/pairs", responses=_SIMPLE | _PROBLEMS, summary="Rates, simple form")
    async def pairs(response: Response, day: DateParameter = None) -> dict[str, str]:
        """Each pair's rate as an exact decimal. The headers `X-Observed-At` and, in mode `replay`,
        `X-Observed-Date` say when the rates held."""
        rates = rates_of(day)
        response.headers["X-Observed-At"] = rates.observed_at.isoformat()
        if rates.replayed_date is not None:
            response.headers["X-Observed-Date"] = rates.replayed_date.isoformat()
        return _texts(rates)

    @api.get("/pairs/full", responses=_PROBLEMS, summary="Rates, with source and dates")
    async def full(day: DateParameter = None) -> FullAnswer:
        rates = rates_of(day)
        return FullAnswer(
            source=feed.source,
            mode=feed.mode,
            observed_at=rates.observed_at,
            replayed_date=rates.replayed_date,
            served_at=datetime.now(UTC),
            rates=_texts(rates),
        )

    return api


def _texts(rates: Rates) -> dict[str, str]:
    return {name: decimal_text(value) for name, value in rates.values.items()}


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _problem_response(error.status_code, error.detail, error.headers)


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return _problem_response(422, "; ".join(reasons))


def _problem_response(
    status: int, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, "application/problem+json")
