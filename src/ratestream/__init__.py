"""ratestream turns exchange-rate sources into a stream, and the stream into answers."""

__version__ = "0.1.0"
