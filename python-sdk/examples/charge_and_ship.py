"""A workflow whose work is done elsewhere: payments and shipping have own queues.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    python charge_and_ship.py

Each queue has a worker in a process of its own. The one for shipping is killed amid its
first attempt (`kill -9`), and started again. What has happened is printed in the end.
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
    """Work on a queue until whoever started this process is gone."""
    async with app, app.worker(queues=[queue], lease=2):
        await asyncio.to_thread(sys.stdin.read)


async def employ(queue: str) -> None:
    """Keep a worker for a queue, in a process of its own, until cancelled."""
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


async def tell(order: AsyncTaskHandle[str]) -> None:
    """Print what has happened to the workflow and to its children, in order."""
    tasks = {"workflow": order}
    for entry in await order.history():
        if entry.kind == "child_spawned" and entry.name and entry.task_id:
            name = entry.name.removeprefix("$spawn:")
            tasks[name] = app.handle(entry.task_id, queue=entry.queue)
    told: list[tuple[datetime, str, str]] = []
    for name, handle in tasks.items():
        for entry in await handle.history():
            if entry.at is None:
                continue  # it still goes on
            event = f"{name}: {entry.kind} {entry.name or ''}"
            if (entry.attempt or 1) > 1:
                event += f" (attempt {entry.attempt})"
            over = entry.kind == "completed"
            result = await handle.result() if over else entry.said
            told.append((entry.at, event, result))
    for seq, (_, event, result) in enumerate(sorted(told), start=1):
        print(f"{seq:>2}  {event:<38}  {result:.60}")


async def main() -> None:
    async with app:
        await app.migrate()
        for queue in QUEUES.values():
            await app.create_queue(queue)
        staff = [asyncio.create_task(employ(queue)) for queue in QUEUES.values()]
        handle = await app.spawn(ChargeAndShip, 7, idempotency_key="order-7")
        async with app.worker():
            print(await handle.result(timeout=60))
        for worker in staff:
            worker.cancel()
        await tell(handle)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]) if sys.argv[1:] else main())
