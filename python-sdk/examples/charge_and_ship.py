"""A workflow with children on other queues, for payments and shipping.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    python charge_and_ship.py

Each queue has a worker in a process of its own. The one for shipping is killed in its
first attempt (`kill -9`), and started again. At the end, the history is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio import subprocess
from datetime import datetime

from durable import AsyncDurable, AsyncTaskHandle, Retry, Task, TaskContext

QUEUES = {"charge": "payments", "ship": "shipping"}


async def charge_card(amount: int) -> str:
    print(f"payments: charging {amount}")
    return f"charge of {amount}"


async def call_carrier(order: int, attempt: int) -> str:
    print(f"shipping: calling the carrier, attempt {attempt}")
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"parcel {order}"


class Charge(Task[int, str]):
    async def run(self, amount: int, ctx: TaskContext) -> str:
        return await ctx.step("charge card", charge_card, amount)


class Ship(Task[int, str]):
    retry = Retry.fixed(0)

    async def run(self, order: int, ctx: TaskContext) -> str:
        return await ctx.step("call carrier", call_carrier, order, ctx.attempt)


class ChargeAndShip(Task[int, str]):
    async def run(self, order: int, ctx: TaskContext) -> str:
        charge = await ctx.call("charge", Charge, 120, queue=QUEUES["charge"])
        parcel = await ctx.call("ship", Ship, order, queue=QUEUES["ship"])
        return f"{charge}, {parcel}"


app = AsyncDurable(queue="orders", tasks=[ChargeAndShip, Charge, Ship])


async def work(queue: str) -> None:
    """Work on a queue until the parent process ends."""
    async with app, app.worker(queues=[queue], lease=2):
        await asyncio.to_thread(sys.stdin.read)


async def supervise(queue: str) -> None:
    """Keep a worker process for a queue running, until cancelled."""
    while True:
        worker = await subprocess.create_subprocess_exec(
            sys.executable, __file__, queue, stdin=subprocess.PIPE
        )
        try:
            await worker.wait()
            print(f"{queue}: the worker has died; here is another")
        finally:
            if worker.stdin is not None:
                worker.stdin.close()


async def print_history(order: AsyncTaskHandle[str]) -> None:
    """Print the history of the workflow and of its children, in order."""
    tasks = {"workflow": order}
    for entry in await order.history():
        if entry.kind == "child_spawned" and entry.name and entry.task_id:
            name = entry.name.removeprefix("$spawn:")
            tasks[name] = app.handle(entry.task_id, queue=entry.queue)
    rows: list[tuple[datetime, str, str]] = []
    for name, handle in tasks.items():
        for entry in await handle.history():
            if entry.at is None:
                continue  # still in progress
            event = f"{name}: {entry.kind} {entry.name or ''}"
            if (entry.attempt or 1) > 1:
                event += f" (attempt {entry.attempt})"
            completed = entry.kind == "completed"
            result = await handle.result() if completed else entry.said
            rows.append((entry.at, event, result))
    for seq, (_, event, result) in enumerate(sorted(rows), start=1):
        print(f"{seq:>2}  {event:<38}  {result:.60}")


async def main() -> None:
    async with app:
        await app.migrate()
        for queue in QUEUES.values():
            await app.create_queue(queue)
        workers = [asyncio.create_task(supervise(queue)) for queue in QUEUES.values()]
        handle = await app.spawn(ChargeAndShip, 7, idempotency_key="order-7")
        async with app.worker():
            print(await handle.result(timeout=60))
        for worker in workers:
            worker.cancel()
        await print_history(handle)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]) if sys.argv[1:] else main())
