"""The proof of "exactly once": everything is killed, and what comes out is compared with an oracle.

`make chaos` runs it; `run.py` is the story, `oracle.py` the judge.
"""


class ChaosError(Exception):
    """The run cannot go on, and has shown nothing."""
