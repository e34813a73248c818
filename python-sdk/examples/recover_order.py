"""An order crashes right after charging the card, and does not charge it twice.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    CRASH=after-charge python recover_order.py   # charges the card, and is killed
    python recover_order.py                      # resumes after the charge

A message changes the address, if it arrives in time. The order publishes its status as
a value that any client can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from datetime import timedelta

from pydantic import BaseModel

from durable import AlreadyFinished, AsyncDurable, Task, TaskContext


class Order(BaseModel):
    id: int
    amount: int
    address: str


def crash(moment: str) -> None:
    if os.environ.get("CRASH") == moment:
        print("kill -9", moment)
        os.kill(os.getpid(), signal.SIGKILL)


async def charge_card(order: Order, key: str) -> str:
    print(f"charging {order.amount} for order {order.id}, once for the key {key}")
    return f"charge-{order.id}"


async def create_shipment(order: Order, address: str) -> str:
    print(f"shipping order {order.id} to {address}")
    return f"parcel-{order.id}"


async def write_receipt(charge: str, parcel: str) -> str:
    return f"receipt: {charge}, {parcel}"


class ProcessOrder(Task[Order, str]):
    time_to_change = timedelta(seconds=1)  # in production it might be an hour

    async def run(self, order: Order, ctx: TaskContext) -> str:
        await ctx.set_value("status", "charging the card")
        charge = await ctx.step("charge", charge_card, order, str(ctx.task_id))
        crash("after-charge")

        await ctx.set_value("status", "charged; the address may still be changed")
        try:
            address = await ctx.recv(
                "address", timeout=self.time_to_change, as_type=str
            )
        except TimeoutError:
            address = order.address

        parcel = await ctx.step("ship", create_shipment, order, address)
        await ctx.set_value("status", f"shipped to {address}")
        return await ctx.step("receipt", write_receipt, charge, parcel)


app = AsyncDurable(tasks=[ProcessOrder])


async def main() -> None:
    async with app:
        await app.migrate()
        order = Order(id=7, amount=120, address="1 Old Street")
        handle = await app.spawn(ProcessOrder, order, idempotency_key="order-7")
        with contextlib.suppress(AlreadyFinished):  # from an earlier run
            await handle.send("address", "2 New Street", dedup_key="moved")
        # after `lease` seconds another worker takes over; the default is 30
        async with app.worker(lease=2):
            print("status:", await handle.value("status"))
            print(await handle.result(timeout=60))
            print("status:", await handle.value("status"))


if __name__ == "__main__":
    asyncio.run(main())
