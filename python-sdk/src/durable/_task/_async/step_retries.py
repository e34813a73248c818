"""Retry a step before it has failed.

A failed try is saved with its error and the time of the next one; until then the task
is suspended as in a sleep, and holds no worker. So the count and the delay survive
crashes and early wake-ups. A new attempt of the task starts counting at one. A replay
continues after the last try, which is the only one that is loaded.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final

from durable._core.arguments import LONGEST_KEY
from durable._core.recorded_errors import error_json, error_text
from durable._core.step_retry_policy import StepRetryPolicy
from durable._task.branches import Wait
from durable._task.checkpoints import Call, Failed
from durable._task.run import Run  # sync: from durable._task.sync_run import SyncRun
from durable.errors import InvalidArgument

__all__ = ["with_retries"]

logger = logging.getLogger("durable.task")

_AMBIGUOUS: Final = re.compile(r":\d+\.|%2")
_LONGEST_MESSAGE: Final = 1000  # of a failed try
_SUFFIX_BYTES: Final = 32  # what the name of a pause adds to that of its step


async def with_retries(
    calls: Run,
    call: Call,
    policy: StepRetryPolicy,
    step: Callable[[Failed], Awaitable[Any]],
) -> Any:
    """Run a step with retries.

    `step` runs it once, and passes its exception to the function it is given.
    """
    run = calls  # sync: run = calls.run
    if len(call.key.encode()) > LONGEST_KEY - _SUFFIX_BYTES:
        raise InvalidArgument(f"a name too long for retries: {call.key[:40]!r}…")
    if policy.max_attempts != 1:
        await calls.check_no_open_step()
    tries_name = f"{_escaped(call.key)}:{run.claimed.attempt}"
    failures = max(run.checkpoints.last_try(tries_name) - 1, 0)
    again, raised = False, Exception()

    def failed(error: Exception) -> Exception:
        nonlocal again, raised
        raised = error
        try:  # the policy needs the exception itself, which a replay does not have
            again = policy.again(error, failures + 1)
        except Exception as broken:  # noqa: BLE001 - `retry_if` is the user's own code
            error = broken
        return error if again else run.keep_failure(call, error)

    while True:
        number = f"{tries_name}.{failures + 1}"
        try_, pause = f"$try:{number}", f"$retry:{number}"
        begun = time.monotonic()
        is_new = try_ not in run.checkpoints.saved
        if is_new:
            again, run.failed_tries[call.key] = False, failures
            try:
                return await step(failed)
            except Exception:
                if not again:
                    raise
        failures += 1
        seconds = policy.pause(failures)
        next_at = run.database_now() + timedelta(seconds=seconds)
        if is_new:
            logger.warning(
                "try %d of step %r of %s %s failed, the next in %.3g s: %s",
                failures,
                call.key,
                run.claimed.name,
                run.claimed.task_id,
                seconds,
                error_text(raised),
                exc_info=raised,
                extra={**run.ids, "step": call.key},
            )
        value = _failed_try(next_at, raised)
        saved = await calls.record(Call(try_, call.position, call.after, begun), value)
        next_at = datetime.fromisoformat(_until(saved.value))
        now = time.monotonic()
        remaining = (next_at - run.database_now()).total_seconds()
        paused = Call(pause, call.position, call.after, now)
        due = now + max(remaining, 0)
        await calls.wait(Wait(paused, due=due, until=next_at.isoformat()))


def _escaped(key: str) -> str:
    """Return a step's key, escaped for the names of its tries.

    The engine matches the tries of a step by prefix, so the key must not look like one
    with the number of a try.
    """
    if _AMBIGUOUS.search(key):
        return key.replace("%", "%25").replace(".", "%2E")
    return key


def _failed_try(next_at: datetime, error: Exception) -> str:
    known = json.loads(error_json(error))
    kept = {"type": known["type"], "message": known["message"][:_LONGEST_MESSAGE]}
    return json.dumps({"until": next_at.isoformat(), "error": kept})


def _until(value: str) -> str:
    known = json.loads(value)
    return str(known["until"] if isinstance(known, dict) else known)
