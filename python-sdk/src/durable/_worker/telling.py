"""What a run tells others, exactly once: events, messages, children, publications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from durable._messages import Message
from durable._worker.executing import inside_a_step
from durable._worker.history import Call
from durable._worker.making import Making
from durable._worker.waits import Branch, Resolved

__all__ = ["Telling"]


class Telling(Making):
    """What is told with the checkpoint that says so, or with the next one."""

    __slots__ = ()

    async def emit(self, call: Call, event: str, payload: str) -> Resolved:
        """Emit an event, with the checkpoint that records it."""

        def tell() -> Coroutine[Any, Any, str]:
            return self._run.services.emit(self.claimed, call, event, payload)

        return await self._tell(call, tell)

    async def send(self, call: Call, message: Message) -> Resolved:
        """Send a message, with the checkpoint that records it."""

        def tell() -> Coroutine[Any, Any, str]:
            return self._run.services.send(self.claimed, call, message)

        return await self._tell(call, tell)

    async def _tell(
        self, call: Call, tell: Callable[[], Coroutine[Any, Any, str]]
    ) -> Resolved:
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            await self.save_failures(call.position)
            text = await self._run.refusable(tell())
            return self._history.remember(call.key, Resolved("done", text))
        finally:
            self._waits.exit(branch)

    async def spawn(self, call: Call, queue: str, child: str) -> Resolved:
        """Spawn a child, given as JSON, with the checkpoint that records it."""
        (saved,) = await self.spawn_all([(call, queue, child)])
        return saved

    async def spawn_all(
        self, children: Sequence[tuple[Call, str, str]]
    ) -> list[Resolved]:
        """Spawn children, in one statement for each queue, with their checkpoints."""
        if not children:
            return []
        known = self._history.saved
        missing = [call for call, *_ in children if call.key not in known]
        saved, branch = await self.begin((missing or [children[0][0]])[0])
        if saved is None:
            try:
                await self._spawn_missing(children)
            finally:
                self._waits.exit(branch)
        return [known[call.key] for call, *_ in children]

    async def _spawn_missing(self, children: Sequence[tuple[Call, str, str]]) -> None:
        await self.save_failures(children[0][0].position)
        claimed, history, run = self.claimed, self._history, self._run
        missing = [asked for asked in children if asked[0].key not in history.saved]
        submitted = [
            run.services.spawn(claimed, queue, child) for _, queue, child in missing
        ]
        for answer in submitted:
            answer.add_done_callback(_heard)  # the first that is refused is raised
        for (call, *_), answer in zip(missing, submitted, strict=True):
            text = await run.refusable(answer)
            history.remember(call.key, Resolved("done", text))

    # -- publishing ----------------------------------------------------------------

    @property
    def logger(self) -> logging.Logger:
        """The run's own logger."""
        return self._run.logger

    def publish(
        self,
        kind: str,
        prefix: str,
        name: str,
        value: str | None,
        branch: Branch | None,
    ) -> None:
        """Hand in an entry of a stream, or a value. A step's function may do so, too.

        What the task's own code publishes takes a name, as every durable call does.
        """
        run = self._run
        run.refuse_unless_open()
        execution = inside_a_step.get()
        if execution is None or value is None:
            self._key(kind, f"{prefix}{name}", branch)  # it has no place among calls
        elif execution.in_transaction:
            raise RuntimeError(
                f"{kind} {name!r} is published inside a transaction's function:"
                " publish it before or after the transaction"
            )
        if value is not None:
            value = self.application.vault.sealed(value)
        publishing = run.publishing()
        publishing.refuse(name if kind == "stream" else "")
        if kind == "value":
            publishing.hand_in("set", f"{prefix}{name}", execution, value)
            return
        source = f"$stream:{prefix}{name}" if execution is None else execution.step
        publishing.hand_in("write", name, source, execution, value)

    @property
    def is_crowded(self) -> bool:
        """Whether who has published something should wait for it to be saved."""
        return self._run.publishes and self._run.publishing().is_crowded

    async def make_room(self) -> None:
        """Return when what was published is saved, as far as need be."""
        if self.is_crowded:
            await self._run.publishing().thins_out()
        self._run.refuse_unless_open()


def _heard(answer: asyncio.Future[str]) -> None:
    if not answer.cancelled():
        answer.exception()
