"""What a task has saved, and what goes with the next thing it saves.

A step that raised is kept, and saved as failed together with the next thing: only that
shows that the task has caught it. A failure that ends the attempt is not saved, and its
step is tried again. Once recorded a failure is final, for every replay sees it. It goes
with everything that is saved until one of that is known to be: a save may be given up.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from durable._vault import PLAIN_VAULT, Vault
from durable._worker.failures import mark_recorded, step_error_json
from durable._worker.saving import Write
from durable._worker.waits import Resolved

if TYPE_CHECKING:
    from durable._worker.run import Claimed

__all__ = ["INTERNAL", "Call", "History"]

INTERNAL: Final = ("$try:", "$retry:")  # checkpoints that are not calls of their own
_quoted: Final = json.JSONEncoder().encode


class Call(NamedTuple):
    """One durable call of a run: its key, and what was known when it was made."""

    key: str
    position: int
    after: int
    made: float  # by time.monotonic()


class _Failure(NamedTuple):
    """A failed step, and how many calls had been made when it failed."""

    position: int
    checkpoint: str
    error: Exception


class History:
    """The checkpoints of one task by key, and the writes that add to them.

    `aside` counts those that stand for no complete call of this run: it has not asked
    for them yet, or they are internal. A failure that is kept counts as complete.
    """

    __slots__ = (
        "_claimed",
        "_failures",
        "_holder",
        "_vault",
        "aside",
        "saved",
    )

    def __init__(
        self,
        claimed: Claimed,
        saved: dict[str, Resolved],
        vault: Vault = PLAIN_VAULT,
    ) -> None:
        self.saved = saved
        self._vault = vault
        self.aside = len(saved)
        self._claimed = claimed
        self._holder = f'{{"task_id":"{claimed.task_id}","claim":{claimed.claim},'
        self._failures: list[_Failure] = []

    def open(self) -> None:
        """Open what was loaded sealed. Raises UnreadablePayload."""
        self.saved = self.opened(self.saved)

    def opened(self, loaded: dict[str, Resolved]) -> dict[str, Resolved]:
        """Return checkpoints as the task saved them. Raises UnreadablePayload."""
        opened = self._vault.opened
        sealed = {
            key: saved._replace(value=text)
            for key, saved in loaded.items()
            if (text := opened(saved.value)) is not saved.value
        }
        return loaded | sealed if sealed else loaded

    def remember(self, key: str, saved: Resolved) -> Resolved:
        """Add a checkpoint that is committed."""
        self.saved[key] = saved
        if key[0] == "$" and key.startswith(INTERNAL):
            self.aside += 1
        return saved

    def keep_failure(self, call: Call, position: int, error: Exception) -> None:
        """Keep a step's failure until a call after that position is saved."""
        text = self.checkpoint(call, "failed", step_error_json(error))
        self._failures.append(_Failure(position, text, error))
        self.aside -= 1

    def value(self, call: Call, value: str) -> Write:
        """Return what saves the value of a call, with the failures caught before it."""
        text = self.checkpoint(call, "done", value)
        if self._failures:
            text = ",".join((*self._caught(before=call.position), text))
        return Write(self._claimed.queue, self._claimed.task_id, text)

    def failures(self, before: float = float("inf")) -> Write | None:
        """Return what saves the failures caught before a call, if there are any."""
        caught = self._caught(before)
        if not caught:
            return None
        return Write(self._claimed.queue, self._claimed.task_id, ",".join(caught))

    def completion(self, result: str) -> Write:
        """Return what completes the task."""
        return Write(
            self._claimed.queue,
            self._claimed.task_id,
            self._all_caught() if self._failures else "",
            completion=f'{self._holder}"result":{self._vault.sealed(result)}}}',
        )

    def failure(self, error: str, *, final: bool) -> Write:
        """Return what fails the attempt; the task, if that is final."""
        retryable = "false" if final else "true"
        error = self._vault.sealed_error(error)
        return Write(
            self._claimed.queue,
            self._claimed.task_id,
            "",
            failure=f'{self._holder}"retryable":{retryable},"error":{error}}}',
        )

    def holder_json(self, *parts: str) -> str:
        """Return an object that says who holds the task, and these parts of it."""
        return (
            f"{self._holder}{','.join(parts)}}}" if parts else f"{self._holder[:-1]}}}"
        )

    def _all_caught(self) -> str:
        return ",".join(self._caught())

    def _caught(self, before: float = float("inf")) -> list[str]:
        """Return the failures that the task has caught. Recorded, they are final."""
        caught = [kept for kept in self._failures if kept.position < before]
        for kept in caught:
            mark_recorded(kept.error)
        return [kept.checkpoint for kept in caught]

    def forget_failures(self, before: float = float("inf")) -> None:
        """Keep the failures caught before a call no longer: they are saved."""
        if self._failures:
            self._failures = [
                kept for kept in self._failures if kept.position >= before
            ]

    def checkpoint(self, call: Call, state: str, value: str) -> str:
        """Return a checkpoint as `durable.save_checkpoints` takes it, sealed."""
        seal = self._vault.sealed_error if state == "failed" else self._vault.sealed
        took = round((time.monotonic() - call.made) * 1000)
        return (
            f'{self._holder}"name":{_quoted(call.key)},"state":"{state}",'
            f'"position":{call.position},"after":{call.after},'
            f'"duration_ms":{took},"value":{seal(value)}}}'
        )
