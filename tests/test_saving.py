"""durable tells apart the runs of a task whose writes share a commit."""

from __future__ import annotations

import asyncio

import psycopg

from durable._worker.link import Link
from durable._worker.saving import Saving, Write

SPAWN = "select task_id from durable.spawn('default', 'twice')"
CLAIM = "select claim from durable.claim_tasks('default', 'w', null, 1, %s)"
EXPIRE = "select durable.expire_leases('default')"


async def test_refuses_the_former_run_and_not_the_present_one(
    dsn: str, db: psycopg.Connection
) -> None:
    """Its step has the same name, and comes first."""
    ((task_id,),) = db.execute(SPAWN).fetchall()
    ((former,),) = db.execute(CLAIM, [1e-6]).fetchall()
    db.execute(EXPIRE)
    ((present,),) = db.execute(CLAIM, [60]).fetchall()
    link = Link(dsn, "flush")
    saving = Saving(link)
    writes = [
        saving.submit(
            Write(
                "default",
                task_id,
                f'{{"task_id":"{task_id}","claim":{claim},"name":"step","value":{claim}}}',
            )
        )
        for claim in (former, present)
    ]
    assert await asyncio.gather(*writes) == ["lost", "ok"]
    await saving.close()
    await link.close()
    saved = db.execute("select claim, value from durable.checkpoints").fetchall()
    assert saved == [(present, present)]
