# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of what is published, of families of two queues, versions and histories."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["FEATURES"]

PUBLISHING: Final = [
    Mutant(
        "publishes for a former claim",
        "publishing.sql",
        "tasks.task_id = own.task_id and tasks.claim = own.claim\n"
        "      and own.claim % 2 = 1\n    offset 0\n  ) as task;\n  if num_nonnulls",
        "tasks.task_id = own.task_id and tasks.claim >= own.claim\n"
        "    offset 0\n  ) as task;\n  if num_nonnulls",
        "pgtap/publishing.sql",
    ),
    Mutant(
        "keeps the first value for ever",
        "publishing.sql",
        "  set set_at = excluded.set_at, times = excluded.times, value = excluded.value\n",
        "  set set_at = excluded.set_at, times = excluded.times\n",
        "pgtap/publishing.sql",
    ),
    Mutant(
        "sets a value back when a former call comes late",
        "publishing.sql",
        "  where task_values.times <= excluded.times; --",
        "  ; --",
        "pgtap/publishing.sql",
    ),
    Mutant(
        "refuses an entry that is said again",
        "publishing.sql",
        "    stream text, number integer, source text, restarted boolean, closes boolean, value json\n"
        "  )\n  on conflict do nothing;",
        "    stream text, number integer, source text, restarted boolean, closes boolean, value json\n  );",
        "pgtap/publishing.sql",
    ),
    Mutant(
        "never closes a stream",
        "publishing.sql",
        "    case when new.closes then null else durable._checked_entry('entry of a stream', new.value) end",
        "    durable._checked_entry('entry of a stream', new.value)",
        "pgtap/following.sql",
    ),
    Mutant(
        "forgets how often a value was set",
        "publishing.sql",
        "    select 'value', task_values.key::text, null, task_values.times, null",
        "    select 'value', task_values.key::text, null, 0, null",
        "pgtap/publishing.sql",
    ),
    Mutant(
        "keeps what was published in a queue that it drops",
        "publishing.sql",
        "  delete from durable.stream_entries where stream_entries.queue = _queue;\n",
        "",
        "pgtap/publishing.sql",
    ),
]

FOLLOWING: Final = [
    Mutant(
        "begins a stream behind its start",
        "following.sql",
        "stream_entries.number >= start",
        "stream_entries.number > start",
        "pgtap/following.sql",
    ),
    Mutant(
        "mixes the streams of a task",
        "following.sql",
        "        and stream_entries.stream = _stream and",
        "        and",
        "pgtap/following.sql",
    ),
    Mutant(
        "begins the log behind its start",
        "following.sql",
        "log_lines.number >= start",
        "log_lines.number > start",
        "pgtap/following.sql",
    ),
    Mutant(
        "gives the value of another key",
        "following.sql",
        "        and task_values.key = _key\n",
        "",
        "pgtap/following.sql",
    ),
]

FIRST: Final = [
    Mutant(
        "takes whoever was given first for the winner",
        "first.sql",
        "    order by task.finished_at nulls last, wanted.ordinal",
        "    order by wanted.ordinal",
        "pgtap/first.sql",
    ),
    Mutant(
        "gives a tie to the last",
        "first.sql",
        "    order by task.finished_at nulls last, wanted.ordinal",
        "    order by task.finished_at nulls last, wanted.ordinal desc",
        "pgtap/first.sql",
    ),
    Mutant(
        "lets one that is gone win",
        "first.sql",
        "    order by task.finished_at nulls last, wanted.ordinal",
        "    order by task.finished_at nulls first, wanted.ordinal",
        "pgtap/first.sql",
    ),
    Mutant(
        "watches none of them",
        "first.sql",
        "  from unnest(_there, _held) as held (queue, task_id)\n",
        "  from unnest(_there, _held) as held (queue, task_id)\n  where false\n",
        "pgtap/first.sql",
    ),
]

ELSEWHERE: Final = [
    Mutant(
        "forgets into which queues a parent reaches",
        "elsewhere.sql",
        "  set child_queues = array_append(tasks.child_queues, child_queue)",
        "  set child_queues = tasks.child_queues",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "reaches into a queue once a child",
        "elsewhere.sql",
        "    and (child_queue = any (tasks.child_queues)) is not true;",
        ";",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "ends what lives below a task that was tried again meanwhile",
        "elsewhere.sql",
        "note.kind = 'ended_above' and (not _held or _state in ('failed', 'cancelled'))",
        "note.kind = 'ended_above'",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "revives below a task that has ended again",
        "elsewhere.sql",
        "note.kind = 'revived_above' and _held and _state not in ('failed', 'cancelled')",
        "note.kind = 'revived_above' and _held",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "leaves who waits for a dropped queue asleep",
        "elsewhere.sql",
        "    where watches.queue = _queue and watches.waiter_queue <> _queue\n",
        "    where false\n",
        "pgtap/elsewhere.sql",
    ),
]

VERSIONS: Final = [
    Mutant(
        "takes what is for another version",
        "versions.sql",
        "      and tasks.name = _name\n      and tasks.version = _version\n",
        "      and tasks.name = _name\n",
        "pgtap/versions.sql",
    ),
    Mutant(
        "lets every version begin in a gated queue",
        "versions.sql",
        "  return not found or coalesce(_latest = version, false);",
        "  return true;",
        "pgtap/versions.sql",
    ),
    Mutant(
        "takes the oldest version for the latest",
        "versions.sql",
        "  order by versions.promoted_at desc, versions.version desc",
        "  order by versions.promoted_at, versions.version",
        "pgtap/versions.sql",
    ),
    Mutant(
        "wakes a worker for what it may not begin",
        "versions.sql",
        "        where _may_begin\n          and tasks.queue = _queue\n"
        '          and tasks.name = known.name collate "C"\n'
        "          and tasks.version is null\n          and tasks.available_at is not null\n",
        "        where tasks.queue = _queue\n"
        '          and tasks.name = known.name collate "C"\n'
        "          and tasks.available_at is not null\n",
        "pgtap/versions.sql",
    ),
]

LOOPS: Final = [
    Mutant(
        "lets a task crash for ever",
        "recovery.sql",
        "  if _most is null or task.attempt < _most then",
        "  if true then",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "counts crashes between which something was saved",
        "recovery.sql",
        "        and checkpoints.attempt > task.attempt - _most);",
        "        and checkpoints.attempt > task.attempt);",
        "pgtap/recovery.sql",
    ),
]

MANY: Final = [
    Mutant(
        "passes over the last task of a page",
        "filter.sql",
        "      and tasks.task_id < coalesce(after,",
        "      and tasks.task_id <= coalesce(after,",
        "pgtap/filter.sql",
    ),
    Mutant(
        "finds tasks whose headers are others",
        "filter.sql",
        "    and (wanted.headers is null or task.headers @> wanted.headers)\n",
        "",
        "pgtap/filter.sql",
    ),
    Mutant(
        "counts the end of a span of time as within it",
        "filter.sql",
        "task.spawned_at < wanted.spawned_before",
        "task.spawned_at <= wanted.spawned_before",
        "pgtap/filter.sql",
    ),
    Mutant(
        "takes a moment without a time zone",
        "filter.sql",
        "(Z|[+-]\\d\\d(:?\\d\\d)?)$",
        "(Z|[+-]\\d\\d(:?\\d\\d)?)?$",
        "pgtap/filter.sql",
    ),
    Mutant(
        "forgets what was cancelled below one of many",
        "many.sql",
        "  perform durable._follow((_queue, null, 'revived_above', tried.task_id,",
        "  perform durable._leave_again((_queue, null, 'waiter', tried.task_id,",
        "pgtap/many.sql",
    ),
    Mutant(
        "calls nothing busy that it could not cancel",
        "many.sql",
        "      _busy := _busy || case when durable._is_live(_queue, _id) then _id end;",
        "      null;",
        "test_calls_busy_what_it_could_not_cancel",
    ),
    Mutant(
        "calls busy what has finished",
        "many.sql",
        "      _busy := _busy || case when durable._is_live(_queue, _id) then _id end;",
        "      _busy := _busy || _id;",
        "test_calls_busy_what_it_could_not_cancel",
    ),
    Mutant(
        "calls nothing busy that it could not try again",
        "many.sql",
        "      _busy := _busy || _id;\n    end if;\n  end loop;\n  perform durable._follow",
        "      null;\n    end if;\n  end loop;\n  perform durable._follow",
        "test_calls_busy_what_it_could_not_try_again",
    ),
    Mutant(
        "tries again below a parent that somebody is at",
        "many.sql",
        "  if not found and durable._exists(_parent_queue, _parent) then",
        "  if false then",
        "test_calls_busy_the_child_of_a_parent_that_somebody_is_at",
    ),
]

HISTORY: Final = [
    Mutant(
        "tells of copied calls when they were made",
        "history.sql",
        "        when saved.claim = 0 then 'copied'\n",
        "",
        "pgtap/history.sql",
    ),
    Mutant(
        "does not tell a timeout from an answer",
        "history.sql",
        "        when saved.state = 'timed_out' then 'timed_out'\n",
        "",
        "pgtap/history.sql",
    ),
    Mutant(
        "takes a lost lease for a failure",
        "history.sql",
        "case runs.outcome when 'failed' then 'attempt_failed'",
        "case runs.outcome when 'lease_lost' then 'attempt_failed'",
        "pgtap/history.sql",
    ),
]

FEATURES: Final = [
    *PUBLISHING,
    *FOLLOWING,
    *FIRST,
    *ELSEWHERE,
    *VERSIONS,
    *LOOPS,
    *MANY,
    *HISTORY,
]
