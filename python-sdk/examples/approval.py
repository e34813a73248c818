"""An expense waits for a person's decision: an event, with a timeout.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    python approval.py

To decide in psql: `select durable.emit_event('default', 'decided:<task id>', '"yes"')`.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Literal

from durable import AsyncDurable, Task, TaskContext

Decision = Literal["yes", "no"]


def pay(amount: int) -> str:
    print("paying", amount)
    return f"paid {amount}"


def remind(boss: str) -> None:
    print("still waiting for", boss)


class Expense(Task[int, str]):
    patience = timedelta(seconds=1)  # in production it might be days

    async def run(self, amount: int, ctx: TaskContext) -> str:
        event = f"decided:{ctx.task_id}"
        try:
            decision = await ctx.await_event(
                event, timeout=self.patience, as_type=Decision
            )
        except TimeoutError:
            await ctx.step("remind", remind, "the boss")
            try:
                decision = await ctx.await_event(
                    event, timeout=self.patience, as_type=Decision
                )
            except TimeoutError:
                return "nobody has decided"
        if decision == "no":
            return "declined"
        return await ctx.step("pay", pay, amount)


app = AsyncDurable(tasks=[Expense])


async def main() -> None:
    async with app:
        await app.migrate()
        decided, refused, ignored = await app.spawn_many(Expense, [120, 5000, 70])
        async with app.worker():
            await app.emit_event(f"decided:{decided.task_id}", "yes")
            await app.emit_event(f"decided:{refused.task_id}", "no")
            for handle in (decided, refused, ignored):
                print(await handle.result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
