"""Logs: one structlog pipeline for our own events and for those of the libraries.

Every event carries the time (UTC, ISO 8601), the level, the logger and, where one is known, the
service: `ratestream up` runs six in one process, so the name is bound to the task that runs them.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import Processor

from ratestream.settings import MASK, LogSettings

LAST_EVENTS = 5
"""How many warnings and errors `LastEvents` keeps."""

_EXCEPTIONS_AS_DATA = structlog.processors.ExceptionRenderer(
    # Local variables may hold secrets. (For the same reason the console's tracebacks are plain.)
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
)
_SECRET_WORDS = ("password", "secret", "token", "authorization", "api_key")
_QUIETER = {
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
    "uvicorn.error": logging.WARNING,
    "alembic": logging.WARNING,
}
"""Libraries whose own "info" is our "debug"."""


def configure_logs(
    settings: LogSettings, *, file: Path | None = None, last: LastEvents | None = None
) -> None:
    """Send all logs to stderr or, if given, to `file`, which is rotated within the bounds that
    the settings name. Calling it again replaces what was configured before.
    """
    handlers = [_file_handler(settings, file) if file else logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(_formatter(settings.format, colors=not file and sys.stderr.isatty()))
    if last is not None:
        handlers.append(last)
    _replace_handlers(handlers, logging.getLevelNamesMapping()[settings.level.upper()])
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


@contextlib.contextmanager
def service_name(service: str) -> Iterator[None]:
    """Within, in this task and in those that it starts, events carry this service's name."""
    with structlog.contextvars.bound_contextvars(service=service):
        yield


class LastEvents(logging.Handler):
    """Keeps the last warnings and errors, one line each, for showing below a table."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=LAST_EVENTS)
        self._guard = threading.Lock()
        self.setFormatter(_formatter("console", colors=False, exceptions=False))

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(self.format(record).split())
        with self._guard:
            self._lines.append(line)

    def lines(self) -> list[str]:
        """Oldest first."""
        with self._guard:
            return list(self._lines)


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _mask_secrets,
    ]


def _mask_secrets(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The last line of defence: a value whose name says that it is a secret is not written."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = MASK
    return event


def _formatter(format_: str, *, colors: bool, exceptions: bool = True) -> logging.Formatter:
    console = structlog.dev.ConsoleRenderer(
        colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    renderers: list[Processor] = [console]
    if format_ == "json":
        renderers = [_EXCEPTIONS_AS_DATA, structlog.processors.JSONRenderer()]
    elif not exceptions:
        renderers = [_without_traceback, console]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared_processors(),
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )


def _without_traceback(
    _: Any, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.pop("exc_info", None)
    return event


def _file_handler(settings: LogSettings, file: Path) -> logging.Handler:
    file.parent.mkdir(parents=True, exist_ok=True)
    return logging.handlers.RotatingFileHandler(
        file,
        maxBytes=settings.file_max_bytes,
        backupCount=settings.file_count - 1,
        encoding="utf-8",
    )


def _replace_handlers(handlers: list[logging.Handler], level: int) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for name, quieter in _QUIETER.items():
        logging.getLogger(name).setLevel(max(level, quieter))
    logging.captureWarnings(True)
