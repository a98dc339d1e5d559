"""api_gateway: answers questions over HTTP, from Postgres, and serves the dashboard.

Errors are problem details (RFC 9457). Lists come in pages: `next` of one answer is the `cursor`
that asks for what follows it, with the same other parameters. An answer may be given again to
whoever asks the same within `api_gateway.max_age`; the header `as-of` says from when it is.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import FileResponse, Response
from prometheus_client import Gauge
from starlette.staticfiles import StaticFiles

from ratestream.apidocs import serve_docs
from ratestream.services.api_gateway.answers import (
    AVERAGE,
    PAIR,
    PLACE,
    QUOTE,
    Averages,
    Pairs,
    Quotes,
    average_item,
    example_of,
    from_cursor,
    page,
    pair_item,
    quote_item,
    to_cursor,
)
from ratestream.services.api_gateway.browsers import Observed
from ratestream.services.api_gateway.problems import (
    UnknownPairError,
    answer_errors,
    describe_problems,
    problems,
)
from ratestream.services.api_gateway.recent import HEADERS, Recent
from ratestream.settings import ApiGatewaySettings, Settings
from ratestream.storage.database import Database, DatabaseOptions
from ratestream.storage.errors import DatabaseAccessError, DatabaseUnavailableError
from ratestream.storage.reader import Position, Reader
from ratestream.streaming import App

DASHBOARD = Path(__file__).parents[2] / "dashboard"

QUESTIONS = ("/pairs", "/pairs/currencies", "/pairs/average")
"""The paths whose answers come from Postgres."""

_CHECK_SECONDS = 5.0
_STATEMENT_SECONDS = 5.0
_POOL_SECONDS = 2.0
_CURSOR_LENGTH = 500


def build(settings: Settings) -> App:
    """Serves the API, its description at `/docs` and the dashboard at `/`. While Postgres is away
    answers are 503; one that refuses the gateway at the start ends it. Connections are bounded,
    read only, and each statement has a limit."""
    app = App("api_gateway")
    database = Database(
        settings.postgres.dsn(),
        DatabaseOptions(
            app.id,
            pool_size=settings.postgres.pool_size,
            pool_timeout=_POOL_SECONDS,
            statement_timeout=_STATEMENT_SECONDS,
            read_only=True,
        ),
    )
    reader = Reader(database)
    api = build_api(reader, settings.api_gateway)
    recent = Recent(api, QUESTIONS, settings.api_gateway.max_age)
    app.mount(Observed(recent, app.registry))
    app.add_readiness_check("postgres", lambda: database.trouble)
    up = Gauge("ratestream_database_up", "1 while Postgres answers.", registry=app.registry)
    up.set_function(lambda: database.trouble is None)

    @app.lifespan
    async def connections(app: App) -> AsyncIterator[None]:
        try:
            await _check_at_start(reader)
            yield
        finally:
            await database.close()

    @app.timer(_CHECK_SECONDS)
    async def check_database() -> None:
        try:
            await reader.check()
        except DatabaseUnavailableError:
            return  # readiness says so, and every answer

    return app


async def _check_at_start(reader: Reader) -> None:
    """Being refused is a mistake to be told now; an outage is not, and later on neither is."""
    try:
        await reader.check()
    except DatabaseAccessError:
        raise
    except DatabaseUnavailableError:
        return


PairName = Annotated[
    str,
    Query(
        pattern="^[A-Z]{6}$",
        description="Two currency codes (ISO 4217), base first.",
        examples=["USDRUB"],
    ),
]
Source = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00]*$",
        description="Only what came from this source.",
        examples=["demo"],
    ),
]
Cursor = Annotated[
    str | None,
    Query(max_length=_CURSOR_LENGTH, description="`next` of the answer before."),
]


def build_api(reader: Reader, settings: ApiGatewaySettings) -> FastAPI:
    """The HTTP API and the dashboard, over what `reader` finds."""
    api = FastAPI(
        title="ratestream",
        summary="Exchange rates and their exact rolling averages.",
        description=__doc__,
        version="1",
        docs_url=None,
        redoc_url=None,
        responses=problems(422, 500, 503),
    )
    serve_docs(api)
    Limit = Annotated[  # noqa: N806 - a type
        int, Query(ge=1, le=settings.max_limit, description="Items in the answer, at most.")
    ]

    @api.get(
        "/pairs",
        summary="What pairs there are",
        response_model=Pairs,
        responses=example_of(PAIR, None, HEADERS),
    )
    async def pairs(limit: Limit = settings.default_limit, cursor: Cursor = None) -> Response:
        """In alphabetical order. Without any quote yet the list is empty."""
        after = from_cursor(cursor, tuple[str])
        found = await reader.pairs(limit + 1, after=after[0] if after else None)
        last = found[limit - 1].pair if len(found) > limit else None
        return page(list(map(pair_item, found[:limit])), to_cursor((last,)) if last else None)

    @api.get(
        "/pairs/currencies",
        summary="Newest quotes",
        response_model=Quotes,
        responses=example_of(QUOTE, to_cursor(PLACE), HEADERS) | problems(404),
    )
    async def currencies(
        pair_name: PairName,
        limit: Limit = settings.default_limit,
        source: Source = None,
        cursor: Cursor = None,
    ) -> Response:
        """The newest quotes of one pair, newest first. Later pages hold what is older, also when
        newer quotes arrive meanwhile."""
        before = from_cursor(cursor, Position)
        found = await reader.newest_quotes(pair_name, limit + 1, source, before)
        if not found and not await reader.knows(pair_name):
            raise UnknownPairError(pair_name)
        last = found[limit - 1].position if len(found) > limit else None
        return page(list(map(quote_item, found[:limit])), to_cursor(last) if last else None)

    @api.get(
        "/pairs/average",
        summary="Current averages",
        response_model=Averages,
        responses=example_of(AVERAGE, None, HEADERS) | problems(404),
    )
    async def average(
        pair_name: PairName | None = None,
        limit: Limit = settings.default_limit,
        source: Source = None,
        cursor: Cursor = None,
    ) -> Response:
        """The newest average of each pair and source, in alphabetical order. Without any quote
        yet the list is empty."""
        after = from_cursor(cursor, tuple[str, str])
        found = await reader.current_averages(limit + 1, pair_name, source, after)
        if not found and pair_name is not None and not await reader.knows(pair_name):
            raise UnknownPairError(pair_name)
        last = found[limit - 1] if len(found) > limit else None
        following = to_cursor((last.pair, last.source)) if last else None
        return page(list(map(average_item, found[:limit])), following)

    @api.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def dashboard() -> FileResponse:
        return FileResponse(DASHBOARD / "index.html")

    api.mount("/static", StaticFiles(directory=DASHBOARD), name="static")
    answer_errors(api)
    describe_problems(api)
    return api
