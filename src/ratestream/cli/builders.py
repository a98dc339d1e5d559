"""From the name of a service to what builds it; imports it only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from ratestream.settings import SERVICES, Settings, SettingsError
from ratestream.streaming import App

Build = Callable[[Settings], App]


def builder(service: str) -> Build:
    """Raises `SettingsError` when there is none of that name."""
    if service not in SERVICES:
        raise SettingsError([f"no service is called {service!r}; there are {', '.join(SERVICES)}"])
    build: Build = importlib.import_module(f"ratestream.services.{service}").build
    return build


def builders() -> Mapping[str, Build]:
    return {service: builder(service) for service in SERVICES}
