"""What stands around api_gateway's API: headers that keep browsers careful, and a measurement."""

import time

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Observed:
    """Around an ASGI application: measures its answers and gives each the headers that keep
    browsers careful. Nothing is cached unchecked: rates are out of date within a second."""

    _HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-frame-options", b"DENY"),
        (b"cache-control", b"no-cache"),
    )
    _POLICY = (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    # Swagger's page has its script and its styles inside.
    _DOCS_POLICY = _POLICY.replace(b"-src 'self';", b"-src 'self' 'unsafe-inline';")

    def __init__(self, inner: ASGIApp, registry: CollectorRegistry) -> None:
        self._inner = inner
        self._seconds = Histogram(
            "ratestream_http_request_seconds",
            "Time to answer a request, by its route.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        policy = self._DOCS_POLICY if scope["path"] == "/docs" else self._POLICY
        headers = [*self._HEADERS, (b"content-security-policy", policy)]
        started = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            await self._inner(scope, receive, send_with_headers)
        finally:
            # Not the path that was asked for: there is no bound to those.
            route = getattr(scope.get("route"), "path", None) or "other"
            seconds = time.perf_counter() - started
            self._seconds.labels(route, str(status)).observe(seconds)
