"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

KAFKA = "kafka.bootstrap_servers"
POSTGRES = "postgres.url"
"""The settings that name servers."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="The YAML file with settings. Default: what RATESTREAM_CONFIG names, or "
        "ratestream.yaml in the current folder if there is one."
    ),
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder for everything that is kept on disk.")
]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Those that the command line has."""
    return {name: value for name, value in values.items() if value is not None}
