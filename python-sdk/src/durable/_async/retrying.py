"""A step that is tried several times before it has failed.

A failed try is saved with the moment of the next, and until then the task waits as it
does in a sleep: it holds no worker. So tries are counted and spaced, whatever crashes,
and whatever else wakes the task. A new attempt at the task begins to count anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final

from durable._tries import Tries
from durable._worker.blocking import AsyncRun
from durable._worker.calls import LONGEST_KEY
from durable._worker.history import Call
from durable._worker.waits import Wait
from durable.errors import InvalidArgument

__all__ = ["tried"]

_COUNT: Final = 32  # bytes that the name of a pause has more than its step's


async def tried(
    run: AsyncRun,
    call: Call,
    tries: Tries,
    step: Callable[[Callable[[Exception], None]], Awaitable[Any]],
) -> Any:
    """Do the step, trying as often as it may be tried.

    `step` does it once, and tells the function it is given what it failed with.
    """
    if len(call.key.encode()) > LONGEST_KEY - _COUNT:
        raise InvalidArgument(f"a name too long to be tried again: {call.key[:40]!r}…")
    if tries.max_attempts != 1:
        run.refuse_while_open()
    failures, again = 0, False

    def failed(error: Exception) -> None:
        nonlocal again
        again = tries.again(error, failures + 1)
        if not again:
            run.keep_failure(call, error)

    while True:
        number = f"{call.key}:{run.claimed.attempt}.{failures + 1}"
        try_, pause = f"$try:{number}", f"$retry:{number}"
        if not run.is_saved(try_):
            again = False
            try:
                return await step(failed)
            except Exception:
                if not again:
                    raise
        failures += 1
        now = time.monotonic()
        next_at = run.database_now() + timedelta(seconds=tries.pause(failures))
        value = json.dumps(next_at.isoformat())
        saved = await run.record(Call(try_, call.position, call.after, now), value)
        next_at = datetime.fromisoformat(json.loads(saved.value))
        left = (next_at - run.database_now()).total_seconds()
        wait = Wait(pause, call.position, call.after, due=now + max(left, 0))
        wait.until = next_at.isoformat()
        await run.wait(Call(pause, call.position, call.after, now), wait)
