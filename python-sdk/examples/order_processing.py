"""An order: charge the card, wait for the parcel, notify the customer.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    python order_processing.py

Kill it at any time (`kill -9`) and start it again: the order resumes. The idempotency
key makes the second spawn return the same order.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from durable import AsyncDurable, Retry, Task, TaskContext


class Order(BaseModel):
    id: int
    amount: int


class Slip(BaseModel):
    carrier: str


class Declined(Exception):
    """The bank has declined the charge; a retry would not help."""


LIMIT = 10_000


async def charge_card(order: Order, key: str) -> str:
    if order.amount > LIMIT:
        raise Declined(order.amount)
    print(f"charging {order.amount} for order {order.id}, with key {key}")
    return f"charge-{order.id}"


class NotifyCustomer(Task[Slip, str]):
    async def run(self, slip: Slip, ctx: TaskContext) -> str:
        return await ctx.step("mail", self.mail, slip.carrier)

    def mail(self, carrier: str) -> str:
        print("mail: on its way with", carrier)
        return carrier


class ProcessOrder(Task[Order, str]):
    retry = Retry.exponential(1, max=timedelta(minutes=5))
    non_retryable = (Declined,)

    async def run(self, order: Order, ctx: TaskContext) -> str:
        # the bank must not charge twice if we crash before the step is saved
        charge = await ctx.step("charge", charge_card, order, str(ctx.task_id))
        await ctx.sleep_for("cool-off", timedelta(seconds=2))
        slip = await ctx.await_event(
            f"packed:{order.id}", timeout=timedelta(days=7), as_type=Slip
        )
        child = await ctx.spawn("notify", NotifyCustomer, slip)
        return f"{charge}, sent with {await ctx.join(child)}"


app = AsyncDurable(queue="orders", tasks=[ProcessOrder, NotifyCustomer])


async def main() -> None:
    async with app:
        await app.migrate()
        order = Order(id=7, amount=100)
        key = f"order-{order.id}"
        handle = await app.spawn(ProcessOrder, order, idempotency_key=key)
        async with app.worker():
            await app.emit_event("packed:7", Slip(carrier="Post"))
            print(await handle.result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
