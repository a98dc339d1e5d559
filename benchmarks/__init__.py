"""What the guarantees cost, measured on the real thing: `make bench-guarantees`.

`latency.py` and `recovery.py` are the two measurements, `figures.py` is what is computed,
`stage.py` what both run on.
"""


class BenchmarkError(Exception):
    """Nothing was measured. The message says what did not happen, and within which time."""
