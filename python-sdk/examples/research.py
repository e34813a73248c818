"""Research: read sources concurrently, get an outline approved, write a summary.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    CRASH=before-approval python research.py   # is killed before the approval
    python research.py                         # reads no source again

Each source has a task of its own, on any worker. While the task waits for the editor it
is not in memory: a month costs as much as a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from datetime import timedelta

from pydantic import BaseModel

from durable import AsyncDurable, AsyncTaskHandle, Task, TaskContext

LIBRARY = {
    "Lovelace 1843": "The engine weaves algebraic patterns as the loom weaves flowers.",
    "Turing 1936": "It is possible to invent a single machine to compute any sequence.",
    "Hopper 1952": "A compiler lets the machine write its programs by itself.",
}


class Source(BaseModel):
    title: str


class Finding(BaseModel):
    title: str
    claim: str


class Approval(BaseModel):
    by: str


class Report(BaseModel):
    summary: str
    sources: list[str]
    approved_by: str


async def find_sources(question: str) -> list[Source]:
    print("looking for sources:", question)
    return [Source(title=title) for title in LIBRARY]


async def read(source: Source) -> Finding:
    print("reading", source.title)
    return Finding(title=source.title, claim=LIBRARY[source.title])


async def summarise(findings: Sequence[Finding]) -> str:
    print("writing the summary")
    return " ".join(finding.claim for finding in findings)


class Analyse(Task[Source, Finding]):
    async def run(self, source: Source, ctx: TaskContext) -> Finding:
        return await ctx.step("read", read, source)


class Research(Task[str, Report]):
    patience = timedelta(days=7)

    async def run(self, question: str, ctx: TaskContext) -> Report:
        sources = await ctx.step("find", find_sources, question)
        children = await ctx.spawn_many("source", Analyse, sources)
        findings = await ctx.gather(*children)

        await ctx.set_value("outline", [finding.title for finding in findings])
        try:
            approval = await ctx.await_event(
                f"approved:{question}", timeout=self.patience, as_type=Approval
            )
        except TimeoutError:
            approval = Approval(by="nobody")

        summary = await ctx.step("summarise", summarise, findings)
        titles = [finding.title for finding in findings]
        return Report(summary=summary, sources=titles, approved_by=approval.by)


app = AsyncDurable(tasks=[Research, Analyse])


async def edit(handle: AsyncTaskHandle[Report], question: str) -> None:
    """Play the editor, who reads a value and emits an event, from any client."""
    print("outline:", await handle.value("outline"))
    if os.environ.get("CRASH") == "before-approval":
        os.kill(os.getpid(), signal.SIGKILL)
    await app.emit_event(f"approved:{question}", Approval(by="Ada"))


async def main() -> None:
    async with app:
        await app.migrate()
        question = "can machines think?"
        handle = await app.spawn(Research, question, idempotency_key=question)
        async with app.worker(lease=2):
            await edit(handle, question)
            report = await handle.result(timeout=60)
        print("summary:", report.summary)
        print("sources:", "; ".join(report.sources))
        print("approved by", report.approved_by)


if __name__ == "__main__":
    asyncio.run(main())
