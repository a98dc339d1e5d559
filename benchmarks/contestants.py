"""Who is compared: the programs of `programs/` and of `peers/`, and how each is started."""

from __future__ import annotations

import sys
from collections.abc import Collection

from benchmarks.environments import ROOT, java_of, pinned, python_of
from benchmarks.streams import Program

FAUST, QUIX, FASTSTREAM, KAFKA_STREAMS = "faust", "quix", "faststream", "kafka_streams"
PEERS = (FAUST, QUIX, FASTSTREAM, KAFKA_STREAMS)
_PINS = {
    FAUST: "faust-streaming",
    QUIX: "quixstreams",
    FASTSTREAM: "faststream",
    KAFKA_STREAMS: "kafka.version",
}

EXACTLY_ONCE, AT_LEAST_ONCE = "exactly_once", "at_least_once"
STATES = ("json", "binary")
_HEAP = "1g"


def _in_words(guarantee: str) -> str:
    return guarantee.replace("_", " ")


def _ours(name: str, module: str, guarantee: str) -> Program:
    command = (sys.executable, "-m", f"benchmarks.programs.{module}")
    return Program(name, command, guarantee, {"PYTHONPATH": str(ROOT)})


OURS_EXACTLY_ONCE = _ours("ratestream, exactly once", "ours", EXACTLY_ONCE)
OURS_AT_LEAST_ONCE = _ours("ratestream, at least once", "ours", AT_LEAST_ONCE)
LOOP = _ours("loop without guarantees", "loop", AT_LEAST_ONCE)

WARM_UP = (LOOP, OURS_EXACTLY_ONCE)
"""What makes the broker do everything that it will have to do."""

FAUST_NAME = "Faust, at least once"
FASTSTREAM_NAME = "FastStream, state in a dict"


def quix_name(guarantee: str) -> str:
    return f"Quix Streams, {_in_words(guarantee)}"


def kafka_streams_name(guarantee: str, state: str) -> str:
    return f"Kafka Streams, {_in_words(guarantee)}, {state} state"


def python_peers(chosen: Collection[str]) -> list[Program]:
    """Brings what they need first, which may take minutes. Raises `BenchmarkError`."""
    programs = []
    if FAUST in chosen:
        programs.append(_python_peer(FAUST_NAME, FAUST))
    if QUIX in chosen:
        programs += [
            _python_peer(quix_name(guarantee), QUIX, guarantee)
            for guarantee in (AT_LEAST_ONCE, EXACTLY_ONCE)
        ]
    if FASTSTREAM in chosen:
        programs.append(_python_peer(FASTSTREAM_NAME, FASTSTREAM))
    return programs


def java_peers(chosen: Collection[str], states: Collection[str] = STATES) -> list[Program]:
    """As `python_peers`."""
    if KAFKA_STREAMS not in chosen:
        return []
    java, *class_path = java_of(KAFKA_STREAMS)
    return [
        Program(
            kafka_streams_name(guarantee, state),
            (java, f"-Xmx{_HEAP}", f"-Dstate={state}", *class_path, "ratestream.Main"),
            guarantee,
        )
        for guarantee in (EXACTLY_ONCE, AT_LEAST_ONCE)
        for state in states
    ]


def peer_versions(chosen: Collection[str]) -> dict[str, str]:
    return {peer: pinned(peer, _PINS[peer]) for peer in PEERS if peer in chosen}


def _python_peer(name: str, peer: str, guarantee: str = AT_LEAST_ONCE) -> Program:
    """Our own folders come along for the job's functions, which need nothing installed."""
    command = (str(python_of(peer)), "-m", f"benchmarks.programs.{peer}_program")
    return Program(name, command, guarantee, {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"})
