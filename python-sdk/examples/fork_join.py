"""A fork and a join: validate, then three concurrent checks, then finalize.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    CRASH=in-fraud python fork_join.py   # is killed while the slowest branch runs
    python fork_join.py                  # repeats only that branch

There are three workers, each with a concurrency of one. The order is suspended while it
waits for its branches, and holds no worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import Any

from pydantic import BaseModel

from durable import AsyncDurable, AsyncTaskHandle, Task, TaskContext


class Order(BaseModel):
    id: int
    amount: int


class Receipt(BaseModel):
    text: str


async def validate(order: Order) -> Order:
    print("validating")
    return order


async def authorise(order: Order) -> str:
    print("authorising")
    return f"authorised {order.amount}"


async def reserve(order: Order) -> int:
    print("reserving")
    return order.id * 100


async def others_are_done() -> None:
    done = 0
    while done < len(["pay", "stock"]):
        await asyncio.sleep(0.01)
        done = (await app.queue_stats()).completed


async def score(order: Order) -> float:
    print("scoring")
    if os.environ.get("CRASH") == "in-fraud":
        await others_are_done()
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.01 * order.id


async def write_receipt(r: dict[str, Any]) -> Receipt:
    print("finalizing")
    text = f"{r['pay']}, from shelf {r['stock']}, risk {r['fraud']:.0%}"
    return Receipt(text=text)


class Pay(Task[Order, str]):
    async def run(self, order: Order, ctx: TaskContext) -> str:
        return await ctx.step("authorise", authorise, order)


class Stock(Task[Order, int]):
    async def run(self, order: Order, ctx: TaskContext) -> int:
        return await ctx.step("reserve", reserve, order)


class Fraud(Task[Order, float]):
    async def run(self, order: Order, ctx: TaskContext) -> float:
        return await ctx.step("score", score, order)


class Checkout(Task[Order, Receipt]):
    async def run(self, order: Order, ctx: TaskContext) -> Receipt:
        order = await ctx.step("validate", validate, order)

        r = await ctx.gather(
            pay=await ctx.spawn("pay", Pay, order),
            stock=await ctx.spawn("stock", Stock, order),
            fraud=await ctx.spawn("fraud", Fraud, order),
        )

        return await ctx.step("finalize", write_receipt, r)


app = AsyncDurable(tasks=[Checkout, Pay, Stock, Fraud])


async def print_attempts(checkout: AsyncTaskHandle[Receipt]) -> None:
    """Print the attempts of each branch, with their workers."""
    for spawned in await checkout.history():
        if spawned.kind != "child_spawned":
            continue
        branch = app.handle(spawned.detail["task_id"])
        for entry in await branch.history():
            if entry.worker is not None:
                worker = entry.worker.rpartition(":")[2]  # of host:process:number
                name = str(spawned.name).removeprefix("$spawn:")
                print(f"{name:<6} attempt {entry.attempt} {entry.kind} on {worker}")


async def main() -> None:
    async with app, AsyncExitStack() as workers:
        await app.migrate()
        order = Order(id=7, amount=120)
        handle = await app.spawn(Checkout, order, idempotency_key="checkout-7")
        for _ in range(3):
            await workers.enter_async_context(app.worker(concurrency=1, lease=2))
        receipt = await handle.result(timeout=60)
        print(receipt.text)
        await print_attempts(handle)


if __name__ == "__main__":
    asyncio.run(main())
