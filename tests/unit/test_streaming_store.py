"""A store on a disk that takes no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ratestream.streaming.store import Store

LIMIT_BYTES = 256 * 1024

# The system refuses to let a file grow, as a full disk does.
WRITE_UNTIL_REFUSED = f"""
import os, resource, signal, sys
from pathlib import Path
from ratestream.streaming import StoreError
from ratestream.streaming.store import Store

store = Store(Path(sys.argv[1]), "cluster/changelog")
store.write({{b"first": b"1"}}, 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, {LIMIT_BYTES}))
try:
    for number in range(2, 1000):
        store.write({{b"key": os.urandom(10_000)}}, number)
except StoreError as error:
    print(number, error, flush=True)
os._exit(0)  # closing would write again
"""


def test_a_store_that_cannot_be_written_says_so_and_is_what_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_UNTIL_REFUSED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, _, reason = done.stdout.partition(" ")
    assert reason.startswith(f"the state folder {tmp_path / 'store'} cannot be written (")
    store = Store(tmp_path / "store", "cluster/changelog")
    assert store.checkpoint == int(refused) - 1
    assert store.get(b"first") == b"1"
    store.close()
