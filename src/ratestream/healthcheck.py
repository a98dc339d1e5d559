"""Whether the service on a port of this machine is ready, for containers:
`python -m ratestream.healthcheck 8000`. Exit code 0 when it is; otherwise 1, and the reasons."""

from __future__ import annotations

import http.client
import json
import signal
import sys
from collections.abc import Sequence
from types import FrameType

SECONDS = 4
"""The longest that a check takes."""

_MAX_PORT = 65_535
_MAX_ANSWER_BYTES = 65_536
_SHOWN = 200


def main(arguments: Sequence[str]) -> int:
    """The command; must run in the main thread, since an alarm bounds it."""
    if len(arguments) != 1 or not arguments[0].isdecimal() or int(arguments[0]) > _MAX_PORT:
        print("usage: python -m ratestream.healthcheck PORT", file=sys.stderr)
        return 2
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(SECONDS)
    try:
        reasons = reasons_against(int(arguments[0]))
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        reasons = [f"no usable answer on port {arguments[0]}: {_one_line(error)}"]
    finally:
        signal.alarm(0)
    if reasons:
        print("\n".join(reasons))
    return int(bool(reasons))


def reasons_against(port: int) -> list[str]:
    """Why the service should get no traffic; empty when it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        if answer.status == http.client.OK:
            return []
        reasons = json.loads(answer.read(_MAX_ANSWER_BYTES))["reasons"]
        return [str(each) for each in reasons] or [f"it answers {answer.status} without a reason"]
    finally:
        connection.close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_SHOWN] or type(error).__name__


def _too_late(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"nothing complete within {SECONDS} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
