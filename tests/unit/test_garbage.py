"""What is imported at the start is never looked through for garbage; all else is, again."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import gc
from ratestream.garbage import uncollected

try:
    with uncollected():
        assert not gc.isenabled()
        kept = [[] for _ in range(1_000)]
        raise KeyError
except KeyError:
    pass
assert gc.isenabled()
assert gc.get_freeze_count() > 1_000
assert not any(each is kept for each in gc.get_objects())
"""


def test_what_was_made_within_stays_and_what_comes_later_is_collected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
