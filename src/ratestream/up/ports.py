"""The ports, checked before anything is started, so that nothing is ever half started."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from ratestream.settings import SERVICES, Settings, variable
from ratestream.up.errors import StartError


def with_free_ports(settings: Settings) -> Settings:
    """The settings with each service's port 0 replaced by a free one. Raises `StartError` naming
    every port that is in use or given twice."""
    ports: dict[str, int] = {}
    problems: list[str] = []
    with ExitStack() as bound:
        for service in SERVICES:
            host, wanted = _address(settings, service)
            name = f"{service}.port"
            if wanted and wanted in ports.values():
                problems.append(f"{name} ({wanted}) is also another service's")
                continue
            try:
                listener = bound.enter_context(_bound(host, wanted))
            except OSError as error:
                problems.append(f"{name} ({wanted} on {host}): {error.strerror}")
                continue
            ports[service] = listener.getsockname()[1]
    if problems:
        example = variable(problems[0].split(" ")[0])
        raise StartError(
            f"cannot listen: {'; '.join(problems)}. "
            f"End what uses it, or set another port ({example}=…)"
        )
    return settings.model_copy(
        update={
            service: getattr(settings, service).model_copy(update={"port": port})
            for service, port in ports.items()
        }
    )


def _address(settings: Settings, service: str) -> tuple[str, int]:
    section = getattr(settings, service)
    return section.host, section.port


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
