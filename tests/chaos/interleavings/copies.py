"""Copy all rows of a queue into another queue, and compare states."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from tests.chaos.interleavings.calls import FAR

__all__ = ["STATE", "make_copier"]

COLUMNS: Final = """
select relname, array_agg(attname::text order by attnum)
from pg_class join pg_attribute on attrelid = pg_class.oid
where relnamespace = 'durable'::regnamespace and relkind = 'r' and attnum > 0
  and not attisdropped
group by relname having 'queue' = any (array_agg(attname))
"""
COPY: Final = """
create function public.copy_queue(original text, copy text) returns void
language plpgsql as $$ begin {} end $$
"""
# Rows of a scenario's queues, and of objects named after them.
MOVED: Final = {
    name: sql.SQL("copy || substr({}, length(original) + 1)").format(
        sql.Identifier(name)
    )
    for name in ("queue", "parent_queue", "waiter_queue", "root_queue")
} | {
    name: sql.SQL(
        "(select array_agg(copy || substr(it, length(original) + 1) order by place)"
        " from unnest({}) with ordinality as listed (it, place))"
    ).format(sql.Identifier(name))
    for name in ("child_queues", "task_queues")
}
STATE: Final = """
select 'task', task_id::text, (to_jsonb(tasks) - 'queue')::text
from durable.tasks where queue = %(queue)s
union all
select 'run', task_id::text, (to_jsonb(runs) - 'queue' - 'retried_by')::text
from durable.runs where queue = %(queue)s
union all
select 'checkpoint', task_id::text, (to_jsonb(checkpoints) - 'queue')::text
from durable.checkpoints where queue = %(queue)s
union all
select 'wait', task_id::text,
  (to_jsonb(waits) - 'queue' - 'target_task_id' - 'watched')::text
from durable.waits join durable.tasks using (queue, task_id)
where waits.queue = %(queue)s and tasks.finished_at is null
union all
select 'event', 'event ' || name, (to_jsonb(events) - 'queue')::text
from durable.events where queue = %(queue)s
union all
select 'key', task_id::text, (to_jsonb(idempotency_keys) - 'queue')::text
from durable.idempotency_keys where queue = %(queue)s
union all
select 'unique key', task_id::text, (to_jsonb(unique_keys) - 'queue')::text
from durable.unique_keys where queue = %(queue)s
union all
select 'mailbox', task_id::text, (to_jsonb(mailboxes) - 'queue')::text
from durable.mailboxes where queue = %(queue)s
union all
select 'message', task_id::text, (to_jsonb(messages) - 'queue')::text
from durable.messages where queue = %(queue)s
union all
select 'message key', task_id::text, (to_jsonb(message_keys) - 'queue')::text
from durable.message_keys where queue = %(queue)s
union all
select 'version', 'version ' || version, (to_jsonb(versions) - 'queue')::text
from durable.versions where queue = %(queue)s
union all
select distinct -- a call that is repeated for locked tasks records each part
  'audit', coalesce(task_id::text, 'queue'),
  (to_jsonb(audit) - '{queue,audit_id,detail}'::text[])::text
from durable.audit where queue = %(queue)s
union all
select 'worker', worker, (to_jsonb(worker_sessions) - 'queue')::text
from durable.worker_sessions where queue = %(queue)s
union all
select 'value', task_id::text, (to_jsonb(task_values) - 'queue')::text
from durable.task_values where queue = %(queue)s
union all
select 'entry', task_id::text, (to_jsonb(stream_entries) - 'queue')::text
from durable.stream_entries where queue = %(queue)s
union all
select 'line', task_id::text, (to_jsonb(log_lines) - 'queue')::text
from durable.log_lines where queue = %(queue)s
union all
select 'claim', task_id::text, (to_jsonb(claim_log) - 'queue')::text
from durable.claim_log where queue = %(queue)s
union all
select 'schedule', 'schedule ' || schedule, (to_jsonb(schedules) - 'queue')::text
from durable.schedules where queue = %(queue)s
union all
select 'queue', 'queue ' || queue, (to_jsonb(queues) - 'queue')::text
from durable.queues where queue = %(queue)s
union all -- totals that are not what a count gives: there are none
select 'total', 'total ' || name, format('%%s live, %%s', sum(live), sum(completed))
from (
  select * from durable._true_totals(%(queue)s)
  union all
  select name, -live, -completed, -failed, -cancelled
  from durable.totals where queue = %(queue)s
) as wrong
group by name
having (sum(live), sum(completed), sum(failed), sum(cancelled)) <> (0, 0, 0, 0)
"""


def make_copier(session: psycopg.Connection) -> None:
    """Copy all tables' rows of one queue into another."""
    statements = []
    for table, columns in session.execute(COLUMNS).fetchall():
        statement = sql.SQL(
            "insert into durable.{0} ({1}) select {2} from durable.{0}"
            " where queue in (original, original || {3});"
        )
        listed = sql.SQL(", ").join(map(sql.Identifier, columns))
        moved = sql.SQL(", ").join(
            MOVED.get(name, sql.Identifier(name)) for name in columns
        )
        into = statement.format(sql.Identifier(table), listed, moved, FAR)
        statements.append(into)
    session.execute(sql.SQL(COPY).format(sql.SQL(" ").join(statements)))
