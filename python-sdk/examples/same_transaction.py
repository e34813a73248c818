"""An order and its task in one SQLAlchemy transaction: both exist, or neither does.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    pip install sqlalchemy
    python same_transaction.py

The same works with psycopg, asyncpg and Django's connection.
"""

from __future__ import annotations

import contextlib
import os

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from durable import Durable, SyncTaskContext, task


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


class SoldOut(Exception):
    pass


def call_carrier(order_id: int) -> str:
    return f"order {order_id} is on its way"


@task
def ship(order_id: int, ctx: SyncTaskContext) -> str:
    return ctx.step("call", call_carrier, order_id)


app = Durable(tasks=[ship])
engine = create_engine(
    "postgresql+psycopg://",
    creator=lambda: psycopg.connect(os.environ["DURABLE_DATABASE_URL"]),
)


def place_order(amount: int, *, sold_out: bool = False) -> str:
    with Session(engine) as session, session.begin():
        order = Order(amount=amount)
        session.add(order)
        session.flush()
        handle = app.spawn_with(session, ship, order.id)
        if sold_out:
            raise SoldOut
    with app.worker():
        return handle.result(timeout=60)


def main() -> None:
    with app:
        app.migrate()
        Base.metadata.create_all(engine)
        print(place_order(100))
        with contextlib.suppress(SoldOut):
            place_order(200, sold_out=True)
        print("tasks:", app.queue_stats().completed)
    engine.dispose()


if __name__ == "__main__":
    main()
