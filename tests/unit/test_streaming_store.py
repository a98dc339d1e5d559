"""A store on a disk that takes no more, that was damaged, or whose process was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from ratestream.streaming import StateError, StoreError
from ratestream.streaming.store import Store

CHANGELOG = "cluster/changelog"
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
store.close()
"""


def test_a_store_that_cannot_be_written_says_so_and_is_what_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_UNTIL_REFUSED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, _, reason = done.stdout.partition(" ")
    assert reason.startswith(f"the state folder {tmp_path / 'store'} cannot be written (")
    store = Store(tmp_path / "store", CHANGELOG)
    assert store.checkpoint == int(refused) - 1
    assert store.get(b"first") == b"1"
    store.close()


# One process after another goes on writing what a changelog says, and is killed at some moment;
# RocksDB is opened in forked processes only. What a store holds must be what the changelog
# says up to the store's own checkpoint. Values are so large that files are flushed now and then.
KILL_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from ratestream.streaming.store import Store

path, kills = Path(sys.argv[1]), int(sys.argv[2])
seed = random.SystemRandom().randrange(2**32)
chance = random.Random(seed)

def key_of(offset):
    return b"%d" % (offset * 7919 % 251)

def value_of(offset):
    return None if offset % 7 == 0 else b"%d " % offset * 2000

def is_right():
    store = Store(path, "cluster/changelog")
    newest = {key_of(offset): offset for offset in range(store.checkpoint or 0)}
    print(store.checkpoint, flush=True)
    return {key: store.get(key) for key in store.all_keys()} == {
        key: value_of(offset) for key, offset in newest.items() if value_of(offset)
    }

def write(opened):
    store = Store(path, "cluster/changelog")
    os.write(opened, b".")
    next_ = store.checkpoint or 0
    while True:
        start, next_ = next_, next_ + 1 + next_ % 40
        changes = {key_of(offset): value_of(offset) for offset in range(start, next_)}
        store.write(changes, next_)

for kill in range(kills):
    opened, signalled = os.pipe()
    writer = os.fork()
    if not writer:
        write(signalled)
    os.close(signalled)
    if chance.random() < 0.8:
        os.read(opened, 1)
    time.sleep(chance.random() * 0.05)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.close(opened)
    checker = os.fork()
    if not checker:
        os._exit(0 if is_right() else 1)
    if os.waitpid(checker, 0)[1]:
        sys.exit(f"wrong after kill {kill} with seed {seed}")
"""


def test_a_store_is_right_or_knowingly_old_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_WRITERS, str(tmp_path / "store"), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    checkpoints = [int(each) for each in done.stdout.split() if each != "None"]
    assert checkpoints == sorted(checkpoints)
    assert len(set(checkpoints)) > 10


def fill(path: Path, *, timed: bool = False) -> None:
    """With a file of data as well as a log."""
    for checkpoint in (1, 2):
        store = Store(path, CHANGELOG, timed=timed)
        store.write({b"key": b"1" * 9_000}, checkpoint, {b"key": checkpoint})
        store.close()


def set_byte(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def first(path: Path, pattern: str) -> Path:
    return min(path.glob(pattern))


def set_known(path: Path, key: bytes, value: bytes | None) -> None:
    """What the store knows about itself."""
    db = Rdict(str(path), Options(raw_mode=True))
    if value is None:
        del db[key]
    else:
        db[key] = value
    db.close()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no MANIFEST": (lambda path: first(path, "MANIFEST*").unlink(), "damaged"),
    "a torn MANIFEST": (lambda path: set_byte(first(path, "MANIFEST*"), 9), "damaged"),
    "an empty CURRENT": (lambda path: empty(first(path, "CURRENT")), "damaged"),
    "a file missing": (lambda path: first(path, "*.sst").unlink(), "damaged"),
    "a file cut": (lambda path: empty(first(path, "*.sst")), "damaged"),
    "marked": (lambda path: (path / "DAMAGED").touch(), "damaged"),
    "no checkpoint": (lambda path: set_known(path, b"mcheckpoint", None), "no checkpoint"),
    "a checkpoint": (lambda path: set_known(path, b"mcheckpoint", b"1x"), "illegible"),
    "a format": (lambda path: set_known(path, b"mformat", b"?"), "illegible"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_store_that_cannot_be_trusted_is_emptied_and_says_why(
    tmp_path: Path, damage: str
) -> None:
    spoil, reason = DAMAGES[damage]
    fill(tmp_path / "store")
    spoil(tmp_path / "store")
    store = Store(tmp_path / "store", CHANGELOG)
    assert (store.wiped, store.checkpoint, store.all_keys()) == (reason, None, [])
    store.write({b"key": b"2"}, 3)
    store.close()
    store = Store(tmp_path / "store", CHANGELOG)
    assert (store.wiped, store.checkpoint, store.get(b"key")) == (None, 3, b"2")
    store.close()


@pytest.mark.parametrize(
    "read", [lambda store: store.get(b"key"), Store.all_keys], ids=["get", "all_keys"]
)
def test_damage_found_by_a_reader_is_an_error_and_empties_the_store_when_next_opened(
    tmp_path: Path, read: Callable[[Store], object]
) -> None:
    fill(tmp_path / "store")
    for file in (tmp_path / "store").glob("*.sst"):
        set_byte(file, 0)
    store = Store(tmp_path / "store", CHANGELOG)
    with pytest.raises(StoreError, match="is damaged"):
        read(store)
    store.close()
    store = Store(tmp_path / "store", CHANGELOG)
    assert (store.wiped, store.checkpoint) == ("damaged", None)
    store.close()


def test_a_store_in_use_is_refused_and_keeps_what_it_has(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    held = Store(tmp_path / "store", CHANGELOG)
    with pytest.raises(StateError, match="cannot be opened"):
        Store(tmp_path / "store", CHANGELOG)
    assert held.checkpoint == 2
    held.close()


def test_a_store_of_a_newer_format_or_another_changelog_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    with pytest.raises(StateError, match="another cluster"):
        Store(tmp_path / "store", "cluster/other")
    set_known(tmp_path / "store", b"mformat", b"3")
    with pytest.raises(StateError, match=r"format 3, this version of ratestream knows .* up to 2"):
        Store(tmp_path / "store", CHANGELOG)


@pytest.mark.parametrize("timed", [True, False])
def test_a_store_of_the_other_format_is_rebuilt(tmp_path: Path, timed: bool) -> None:
    fill(tmp_path / "store", timed=not timed)
    store = Store(tmp_path / "store", CHANGELOG, timed=timed)
    assert store.wiped == ("format 1, not 2" if timed else "format 2, not 1")
    assert store.checkpoint is None
    store.close()


def test_a_timed_store_knows_when_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", CHANGELOG, timed=True)
    store.write({b"a": b"1", b"b": b"2"}, 2, {b"a": 70, b"b": -1})
    store.write({b"b": None}, 3, {b"b": 90})
    store.close()
    store = Store(tmp_path / "store", CHANGELOG, timed=True)
    assert (store.get_timed(b"a"), store.get_timed(b"b")) == ((b"1", 70), None)
    assert (store.timed_keys(), store.stream_time) == ([(b"a", 70)], 90)
    store.close()


def test_a_store_is_stale_half_a_day_after_it_had_everything(tmp_path: Path) -> None:
    def is_stale(*, seconds_ago: int, then: Callable[[Store], object]) -> bool:
        fill(tmp_path / "store")
        now = int((tmp_path / "store").stat().st_mtime)
        set_known(tmp_path / "store", b"mwritten", str(now - seconds_ago).encode())
        store = Store(tmp_path / "store", CHANGELOG)
        then(store)
        found = store.is_stale()
        store.close()
        return found

    hour = 3600
    assert not is_stale(seconds_ago=11 * hour, then=lambda store: None)
    assert is_stale(seconds_ago=13 * hour, then=lambda store: None)
    assert not is_stale(seconds_ago=13 * hour, then=lambda store: store.write({}, 3))
    # A part of what was missing says nothing of deletions in the rest.
    partly = {b"key": b"2"}
    assert is_stale(
        seconds_ago=13 * hour, then=lambda store: store.write(partly, 3, is_current=False)
    )
    # Who owns a table and writes nothing keeps it current; who was away for long cannot know.
    assert is_stale(seconds_ago=13 * hour, then=Store.refresh)
    assert not is_stale(seconds_ago=11 * hour, then=refresh_an_hour_later)


def refresh_an_hour_later(store: Store) -> None:
    store.refresh()
    assert store._age() < 60
