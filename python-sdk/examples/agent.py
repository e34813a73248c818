"""An agent that survives `kill -9` in the middle of a sentence.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    CRASH=sorry python agent.py   # is killed when the agent writes: sorry
    python agent.py               # resumes, and writes that sentence again

No saved answer of the model is requested again, and no tool call is repeated: neither
after a crash, nor by a fork that tries another ending.
"""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta

from pydantic import BaseModel

from durable import AsyncDurable, AsyncTaskHandle, TaskContext, task

CRASH = os.environ.get("CRASH")  # at which word
PATIENCE = timedelta(days=1)
ENDINGS = {
    "plain": "We are sorry for the kettle, and have paid back 120.",
    "haiku": "kettle came in shards / your money flows back to you / tea can wait",
}


class Case(BaseModel):
    number: int
    complaint: str
    style: str = "plain"


class Answer(BaseModel):
    text: str
    tool: str | None = None  # what the model wants used
    subject: str = ""


async def ask_model(style: str, said: list[str], ctx: TaskContext) -> Answer:
    """Simulate a model that streams its next answer word by word."""
    turn = len(said) // 2
    ctx.logger.info("the model is asked for answer %d", turn + 1)
    answer = [
        Answer(text="Let me look at that order.", tool="look_up", subject="7"),
        Answer(text="It was paid; I would refund it.", tool="refund", subject="7"),
        Answer(text=ENDINGS[style]),
    ][turn]
    for word in answer.text.split():
        await ctx.write_stream("tokens", word)
        await asyncio.sleep(60 if word == CRASH else 0)  # the reader kills the process
    return answer


@task
async def look_up(order: str, ctx: TaskContext) -> str:
    return await ctx.step("select", lambda: f"order {order}: kettle, 120")


@task
async def refund(order: str, ctx: TaskContext) -> str:
    return await ctx.step("pay back", pay_back, order)


async def pay_back(order: str) -> str:
    print(f"\n[paying back order {order}]", end="")
    return "paid back 120"


TOOLS = {"look_up": look_up, "refund": refund}
DANGEROUS = {"refund"}


@task
async def agent(case: Case, ctx: TaskContext) -> str:
    said = [case.complaint]
    while True:
        answer: Answer = await ctx.step("think", ask_model, case.style, said, ctx)
        if answer.tool is None:
            return answer.text
        if answer.tool in DANGEROUS:
            wanted = f"case {case.number}: {answer.tool} {answer.subject}"
            await ctx.set_value("waits for", wanted)
            if not await ctx.await_event(wanted, timeout=PATIENCE, as_type=bool):
                return "I may not do that."
        found = await ctx.call(answer.tool, TOOLS[answer.tool], answer.subject)
        said += [answer.text, found]


app = AsyncDurable(tasks=[agent, look_up, refund])


async def read_along(handle: AsyncTaskHandle[str]) -> None:
    """Print the agent's words as they arrive, on whichever worker it runs."""
    step = None
    async for entry in handle.stream("tokens", as_type=str).entries():
        if entry.restarted:
            print(" ... [cut off]", end="")
        if entry.restarted or entry.step != step:
            print("\nagent:", end="")
        print("", entry.value, end="", flush=True)
        if entry.value == CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        step = entry.step


async def supervise(handle: AsyncTaskHandle[str]) -> None:
    """Play the person who approves tools: here, all of them."""
    wanted = await handle.value("waits for", as_type=str)
    await app.emit_event(wanted, payload=True)


async def main() -> None:
    async with app:
        await app.migrate()
        case = Case(number=9, complaint="My kettle, order 7, came in pieces!")
        handle = await app.spawn(agent, case, idempotency_key="case 9")
        print("customer:", case.complaint, end="")
        async with app.worker(lease=2):
            await asyncio.gather(read_along(handle), supervise(handle))
            haiku = case.model_copy(update={"style": "haiku"})
            fork = await handle.fork(
                before="think#3", params=haiku, idempotency_key="case 9, haiku"
            )
            print("\nforked:", await fork.result(timeout=60))
        for name, one in {"agent": handle, "fork": fork}.items():
            async for line in one.logs():
                print(f"{name}, attempt {line.attempt}: {line.message}")


if __name__ == "__main__":
    asyncio.run(main())
