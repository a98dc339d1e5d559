"""How fast ratestream is, beside its peers and beside the limit: `make bench`. README.md says how
to read the figures and how to repeat them.

Each benchmark is a module that `__main__.py` names. `rounds.py` runs subjects in turn, `report.py`
is what is published, `figures.py` what is computed, `stage.py` what they run on.
"""


class BenchmarkError(Exception):
    """Nothing was measured. The message says what did not happen, and within which time."""
