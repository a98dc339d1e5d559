"""api_gateway's errors, as problem details for HTTP APIs (RFC 9457)."""

import re
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ratestream.storage.errors import DatabaseUnavailableError, UnstorableError

PROBLEM_JSON = "application/problem+json"
_RETRY_AFTER_SECONDS = 5
_SHOWN_CHARACTERS = 100
_SCHEMA = "#/components/schemas/{model}"


class WrongField(BaseModel):
    """One parameter that is wrong."""

    field: str
    allowed: str
    value: str | None = Field(None, description="As it was given; absent when it was not.")


class Problem(BaseModel):
    """Problem details for HTTP APIs, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[WrongField] | None = None


class UnknownPairError(Exception):
    """There has never been a quote of the pair that is its argument."""


class Kind(NamedTuple):
    """What one status means here, with an example."""

    name: str
    title: str
    example: str
    errors: list[WrongField] | None = None


_TOO_SMALL = WrongField(field="limit", value="0", allowed="must be greater than or equal to 1")
_KINDS = {
    404: Kind(
        "unknown-pair", "Unknown pair", "there is no pair XAUXAG; GET /pairs lists what there is"
    ),
    422: Kind(
        "wrong-parameter", "Wrong parameter", f"limit = 0: {_TOO_SMALL.allowed}", [_TOO_SMALL]
    ),
    500: Kind("internal-error", "Internal error", "the error has been logged"),
    503: Kind("database-away", "Database away", "the database does not answer; try again"),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says about these answers."""
    return {status: _described(status) for status in statuses}


def _described(status: int) -> dict[str, Any]:
    kind = _KINDS[status]
    example = _problem(status, kind.example, kind.errors).model_dump(exclude_none=True)
    schema = {"$ref": _SCHEMA.format(model=Problem.__name__)}
    content = {PROBLEM_JSON: {"schema": schema, "example": example}}
    return {"description": kind.title, "content": content}


def describe_problems(api: FastAPI) -> None:
    """Put `Problem` into the OpenAPI document: FastAPI puts in only what is plain JSON."""
    problem = Problem.model_json_schema(ref_template=_SCHEMA)
    schemas = {**problem.pop("$defs"), Problem.__name__: problem}

    def openapi() -> dict[str, Any]:
        document = FastAPI.openapi(api)
        document["components"]["schemas"].update(schemas)
        return document

    api.openapi = openapi  # type: ignore[method-assign]  # how FastAPI wants it extended


def answer_errors(api: FastAPI) -> None:
    """Make every error of `api` an answer; none shows a trace."""

    @api.exception_handler(UnknownPairError)
    async def unknown_pair(_: Request, error: UnknownPairError) -> JSONResponse:
        return _answer(_problem(404, f"there is no pair {error}; GET /pairs lists what there is"))

    @api.exception_handler(DatabaseUnavailableError)
    async def database_away(_: Request, __: DatabaseUnavailableError) -> JSONResponse:
        headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
        return _answer(_problem(503, _KINDS[503].example), headers)

    @api.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        return _wrong([_field_error(each) for each in error.errors()])

    @api.exception_handler(UnstorableError)
    async def wrong_cursor(request: Request, _: UnstorableError) -> JSONResponse:
        # Only a cursor can hold what Postgres has no value for.
        cursor = request.query_params.get("cursor")
        return _wrong(
            [
                WrongField(
                    field="cursor",
                    value=_shortened(cursor or ""),
                    allowed="must be `next` as given",
                )
            ]
        )

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        problem = Problem(
            type="about:blank",
            title=error.detail,
            status=error.status_code,
            detail=f"{error.detail}; /docs says what there is",
        )
        return _answer(problem, error.headers)

    @api.exception_handler(500)
    async def internal(_: Request, __: Exception) -> JSONResponse:
        return _answer(_problem(500, _KINDS[500].example))  # the server logs it, with its trace


def _wrong(errors: list[WrongField]) -> JSONResponse:
    detail = "; ".join(f"{_named(each)}: {each.allowed}" for each in errors)
    return _answer(_problem(422, detail, errors))


def _named(wrong: WrongField) -> str:
    return wrong.field if wrong.value is None else f"{wrong.field} = {wrong.value}"


def _field_error(detail: Any) -> WrongField:
    field = ".".join(str(part) for part in detail["loc"][1:])
    if detail["type"] == "missing":
        return WrongField(field=field, value=None, allowed="is required")
    allowed = re.sub(r"^(Input|String|Value) should", "must", detail["msg"])
    return WrongField(field=field, value=_shortened(str(detail["input"])), allowed=allowed)


def _shortened(text: str) -> str:
    """An answer does not grow with what was asked."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _problem(status: int, detail: str, errors: list[WrongField] | None = None) -> Problem:
    kind = _KINDS[status]
    return Problem(
        type=f"urn:ratestream:{kind.name}",
        title=kind.title,
        status=status,
        detail=detail,
        errors=errors,
    )


def _answer(problem: Problem, headers: Any = None) -> JSONResponse:
    return JSONResponse(
        problem.model_dump(exclude_none=True),
        status_code=problem.status,
        headers=headers,
        media_type=PROBLEM_JSON,
    )
