"""The code that docs/runtime.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "runtime.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_service_and_its_test_run() -> None:
    service, _on_kafka, its_test = examples()
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(service, str(GUIDE), "exec", dont_inherit=True), names)
    exec(compile(its_test, str(GUIDE), "exec", dont_inherit=True), names)
    assert names["volumes_out"].name == "volumes"


def test_the_example_on_kafka_compiles() -> None:
    _, on_kafka, _ = examples()
    compile(on_kafka, str(GUIDE), "exec", dont_inherit=True)
