# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of cron expressions and schedules."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["SCHEDULES"]

SCHEDULES: Final = [
    Mutant(
        "ignores the offset that a time zone has the day before",
        "cron.sql",
        "    _moment := _utc - _offsets[1];\n",
        "    _moment := _utc - _offsets[2];\n",
        "pgtap/cron.sql",
    ),
    Mutant(
        "takes a day by the wall clock for an expression with seconds",
        "cron.sql",
        "_cron.by_wall_clock := cardinality(_fields) = 5\n    and",
        "_cron.by_wall_clock := true\n    and",
        "pgtap/cron.sql",
    ),
    Mutant(
        "matches either day although one begins with *",
        "cron.sql",
        "    and case when cron.either_day",
        "    and case when true",
        "pgtap/cron.sql",
    ),
    Mutant(
        "takes any offset for a time zone",
        "cron.sql",
        "  if _name is distinct from time_zone or time_zone is null then",
        "  if time_zone is null then",
        "pgtap/cron.sql",
    ),
    Mutant(
        "catches up one tick too many",
        "ticks.sql",
        "cardinality(_found) - number + 1, 1)",
        "cardinality(_found) - number, 1)",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "handles a late tick although none is to be caught up",
        "ticks.sql",
        "  if schedule.next_at >= _on_time or schedule.catch_up is null then",
        "  if true then",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "moves a tick that is due when the schedule is created again",
        "schedules.sql",
        "    when known.next_at <= durable._now()\n",
        "    when false\n",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "catches up the ticks of a pause",
        "schedules.sql",
        "    next_at = durable._next_tick(_known, durable._now()),",
        "    next_at = durable._next_tick(_known, _known.paused_at),",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "spawns another task for a tick that has one",
        "ticks.sql",
        "jsonb_build_object('idempotency_key', key)\n",
        "jsonb_build_object('idempotency_key', key || gen_random_uuid())\n",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "takes a last task that has finished for one that has not",
        "ticks.sql",
        "  if schedule.overlap = 'allow' or not durable._is_live(_queue, schedule.last_task_id) then",
        "  if schedule.overlap = 'allow' then",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "lets one bad schedule stop the others",
        "ticks.sql",
        "      when others then\n        raise warning 'durable: a tick",
        "      when division_by_zero then\n        raise warning 'durable: a tick",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "tries a bad schedule again at once",
        "ticks.sql",
        "      and (schedules.failed_at > _now - make_interval(secs => 60)) is not true\n",
        "",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "takes a tick that has waited for one that is late",
        "ticks.sql",
        "  _was_buffered := durable._was_buffered(_due);\n",
        "  _was_buffered := false;\n",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "handles the ticks that came while one waited",
        "ticks.sql",
        "case when _was_buffered then at else _tick end);",
        "_tick);",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "lets a tick that waits hold up other schedules",
        "ticks.sql",
        "      and not durable._is_buffered(schedules)\n",
        "",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "takes a full queue for a failure of the schedule",
        "ticks.sql",
        "      when sqlstate 'WFFUL' then",
        "      when division_by_zero then",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "drops schedules that others have created",
        "schedules.sql",
        "    and schedules.source = _source\n",
        "",
        "pgtap/schedules.sql",
    ),
    Mutant(
        "keeps the schedules of a queue that was dropped",
        "queues.sql",
        "  delete from durable.schedules where schedules.queue = _queue;\n",
        "",
        "pgtap/schedules.sql",
    ),
]
