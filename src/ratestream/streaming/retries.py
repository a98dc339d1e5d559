"""What agents have failed for, and what is to become of it."""

from __future__ import annotations

from collections.abc import Mapping

from ratestream.streaming.errors import AgentError, DecodeError
from ratestream.streaming.streams import OnError, RecordId
from ratestream.streaming.types import Run, TopicPartition

_LONGEST_BACKOFF_SECONDS = 60.0


class Retries:
    """The records for which agents have raised, until they are committed."""

    def __init__(self) -> None:
        self.alone: set[RecordId] = set()
        """Those of which one must have been at fault: `take` gives out each of them alone."""
        self._attempts: dict[RecordId, int] = {}
        self._given_up: dict[RecordId, str] = {}

    def delay_after(self, error: AgentError, policy: OnError | None) -> float:
        """Seconds to wait before what is not committed is read again. Raises `error` when that is
        not to be done."""
        if not error.records or policy is None or policy == OnError():
            raise error
        if len(error.records) > 1:
            self.alone.update(error.records)
            return 0.0
        (record,) = error.records
        attempt = self._attempts[record] = self._attempts.get(record, 0) + 1
        if attempt <= policy.retries:
            return min(_LONGEST_BACKOFF_SECONDS, policy.backoff * 2.0 ** (attempt - 1))
        if policy.then == "stop":
            raise error
        self._given_up[record] = str(error)
        return 0.0

    def check(self, run: Run, index: int | None = None) -> None:
        """Raises `DecodeError`, with the agent's error as the reason, when one of these records
        (or the one at `index`) was given up."""
        if not self._given_up:
            return
        for each in range(len(run)) if index is None else (index,):
            reason = self._given_up.get((*run.partition, run.offset(each)))
            if reason is not None:
                raise DecodeError(reason)

    def forget_before(self, committed: Mapping[TopicPartition, int]) -> None:
        """What is committed will not be read again."""
        if not self._attempts and not self.alone:
            return

        def is_done(record: RecordId) -> bool:
            return record[2] < committed.get(TopicPartition(*record[:2]), 0)

        for each in [each for each in {*self._attempts, *self.alone} if is_done(each)]:
            self.alone.discard(each)
            self._attempts.pop(each, None)
            self._given_up.pop(each, None)
