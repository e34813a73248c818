# Made from _async/patching.py by tools/async_to_sync.py: edit that, not this.
"""Changing a task's code while tasks are under way in it."""

from __future__ import annotations

from durable._names import check_step_name
from durable._sync.calling import Calling
from durable._values import codec
from durable._worker.history import Call
from durable._worker.outcomes import read

__all__ = ["Patching"]

_BOOL = codec(bool)


class Patching(Calling):
    """The patches of a task: where new code and old part."""

    def patched(self, name: str) -> bool:
        """Return whether the task takes the new way here: the same at every replay.

            if ctx.patched("ask-the-bank"):
                ctx.step("authorize", authorize, order)
            else:
                ctx.step("charge", charge, order)

        True, and recorded, for a task that comes here for the first time; False for one
        whose history goes on beyond this place without the patch. Calls of branches
        beside this one count as beyond: ask before branches begin. Each use of a name,
        in a loop for instance, decides for itself.
        """
        key = f"{self._prefix}{check_step_name(name)}"
        call = self._run.take_patch(key, None)
        asked = self._patched(call)
        return asked if call is None else self._made(call, asked)

    def _patched(self, call: Call | None) -> bool:
        if call is None:
            return False
        return read(self._run.record(call, "true"), _BOOL)

    def deprecate_patch(self, name: str) -> None:
        """Accept that a task has the patch, where `patched` stood.

        For when no task goes the old way any more: its code and the question are gone,
        and tasks that have recorded the answer are still under way.
        """
        key = f"{self._prefix}{check_step_name(name)}"
        self._run.accept_patch(key, None)
