"""The error of this package."""

from __future__ import annotations


class OperationError(Exception):
    """An operation cannot be done, or not as asked. The message says why and what to do."""
