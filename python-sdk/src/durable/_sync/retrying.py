# Made from _async/retrying.py by tools/async_to_sync.py: edit that, not this.
"""A step that is tried several times before it has failed.

Between two tries the task waits as it does in a sleep: it holds no worker, and the wait
is in its history. So the tries are counted whatever crashes, and go on where they were.
A new attempt at the task begins to count anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from durable._tries import Tries
from durable._worker.blocking import BlockingRun
from durable._worker.calls import LONGEST_KEY
from durable._worker.history import Call
from durable._worker.waits import Wait
from durable.errors import InvalidArgument

__all__ = ["tried"]

_COUNT: Final = 32  # bytes that the name of a pause has more than its step's


def tried(
    run: BlockingRun,
    call: Call,
    tries: Tries,
    step: Callable[[Callable[[Exception], None]], Any],
) -> Any:
    """Do the step, trying as often as it may be tried.

    `step` does it once, and tells the function it is given what it failed with.
    """
    if len(call.key.encode()) > LONGEST_KEY - _COUNT:
        raise InvalidArgument(f"a name too long to be tried again: {call.key[:40]!r}…")
    failures, again = 0, False

    def failed(error: Exception) -> None:
        nonlocal again
        again = tries.again(error, failures + 1)
        if not again:
            run.keep_failure(call, error)

    while True:
        pause = f"$retry:{call.key}:{run.claimed.attempt}.{failures + 1}"
        if not run.is_saved(pause):
            again = False
            try:
                return step(failed)
            except Exception:
                if not again:
                    raise
        failures += 1
        begun = time.monotonic()
        due = begun + tries.retry.delay(failures)
        run.wait(
            Call(pause, call.position, call.after, begun),
            Wait(pause, call.position, call.after, due=due),
        )
