# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of what is published, of families of two queues, versions and histories."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["FEATURES"]

PUBLISHING: Final = [
    Mutant(
        "publishes for a former claim",
        "published_write.sql",
        "tasks.task_id = own.task_id and tasks.claim = own.claim\n"
        "      and own.claim % 2 = 1\n    offset 0\n  ) as task;\n  if num_nonnulls",
        "tasks.task_id = own.task_id and tasks.claim >= own.claim\n"
        "    offset 0\n  ) as task;\n  if num_nonnulls",
        "pgtap/published_write.sql",
    ),
    Mutant(
        "keeps the first value for ever",
        "published_write.sql",
        "  set set_at = excluded.set_at, times = excluded.times, value = excluded.value\n",
        "  set set_at = excluded.set_at, times = excluded.times\n",
        "pgtap/published_write.sql",
    ),
    Mutant(
        "sets a value back when a former call comes late",
        "published_write.sql",
        "  where task_values.times <= excluded.times; --",
        "  ; --",
        "pgtap/published_write.sql",
    ),
    Mutant(
        "refuses an entry that is said again",
        "published_write.sql",
        "    stream text, number integer, source text, restarted boolean, closes boolean, value json\n"
        "  )\n  on conflict do nothing;",
        "    stream text, number integer, source text, restarted boolean, closes boolean, value json\n  );",
        "pgtap/published_write.sql",
    ),
    Mutant(
        "never closes a stream",
        "published_write.sql",
        "    case when new.closes then null else durable._checked_entry('entry of a stream', new.value) end",
        "    durable._checked_entry('entry of a stream', new.value)",
        "pgtap/published_read.sql",
    ),
    Mutant(
        "forgets how often a value was set",
        "published_write.sql",
        "    select 'value', task_values.key::text, null, task_values.times, null",
        "    select 'value', task_values.key::text, null, 0, null",
        "pgtap/published_write.sql",
    ),
    Mutant(
        "keeps what was published in a queue that it drops",
        "queues.sql",
        "  delete from durable.stream_entries where stream_entries.queue = _queue;\n",
        "",
        "pgtap/published_write.sql",
    ),
]

FOLLOWING: Final = [
    Mutant(
        "begins a stream behind its start",
        "published_read.sql",
        "stream_entries.number >= start",
        "stream_entries.number > start",
        "pgtap/published_read.sql",
    ),
    Mutant(
        "mixes the streams of a task",
        "published_read.sql",
        "        and stream_entries.stream = _stream and",
        "        and",
        "pgtap/published_read.sql",
    ),
    Mutant(
        "begins the log behind its start",
        "published_read.sql",
        "log_lines.number >= start",
        "log_lines.number > start",
        "pgtap/published_read.sql",
    ),
    Mutant(
        "gives the value of another key",
        "published_read.sql",
        "        and task_values.key = _key\n",
        "",
        "pgtap/published_read.sql",
    ),
]

FIRST: Final = [
    Mutant(
        "takes whoever was given first for the winner",
        "wait_any.sql",
        "    order by task.finished_at nulls last, wanted.ordinal",
        "    order by wanted.ordinal",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "gives a tie to the last",
        "wait_any.sql",
        "    order by task.finished_at nulls last, wanted.ordinal",
        "    order by task.finished_at nulls last, wanted.ordinal desc",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "lets one that is gone win",
        "wait_any.sql",
        "    order by task.finished_at nulls last, wanted.ordinal",
        "    order by task.finished_at nulls first, wanted.ordinal",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "watches none of them",
        "wait_any.sql",
        "  from unnest(_there, _held) as held (queue, task_id)\n",
        "  from unnest(_there, _held) as held (queue, task_id)\n  where false\n",
        "pgtap/wait_any.sql",
    ),
]

ELSEWHERE: Final = [
    Mutant(
        "forgets into which queues a parent reaches",
        "cross_queue.sql",
        "  set child_queues = array_append(tasks.child_queues, child_queue)",
        "  set child_queues = tasks.child_queues",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "reaches into a queue once a child",
        "cross_queue.sql",
        "    and (child_queue = any (tasks.child_queues)) is not true;",
        ";",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "ends what lives below a task that was tried again meanwhile",
        "cross_queue.sql",
        "  elsif (_state in ('failed', 'cancelled')) = (kind = 'revive') then\n",
        "  elsif kind = 'revive' and _state in ('failed', 'cancelled') then\n",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "revives below a task that has ended again",
        "cross_queue.sql",
        "  elsif (_state in ('failed', 'cancelled')) = (kind = 'revive') then\n",
        "  elsif kind <> 'revive' and _state not in ('failed', 'cancelled') then\n",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "leaves who waits for a dropped queue asleep",
        "cross_queue.sql",
        "    where watches.queue = _queue and watches.waiter_queue <> _queue\n",
        "    where false\n",
        "pgtap/cross_queue.sql",
    ),
]

VERSIONS: Final = [
    Mutant(
        "takes what is for another version",
        "claims.sql",
        "      and tasks.name = _name\n      and tasks.version = _version\n",
        "      and tasks.name = _name\n",
        "pgtap/versions.sql",
    ),
    Mutant(
        "lets every version begin in a gated queue",
        "versions.sql",
        "    if _latest <> version then",
        "    if false then",
        "pgtap/versions.sql",
    ),
    Mutant(
        "takes the oldest version for the latest",
        "versions.sql",
        "    order by versions.promoted_at desc, versions.version desc",
        "    order by versions.promoted_at, versions.version",
        "pgtap/versions.sql",
    ),
    Mutant(
        "wakes a worker for what it may not begin",
        "claims.sql",
        "    _versions := durable._claimable_versions(_queue, _policy, coalesce(version, ''));",
        "    _versions := array(select waiting.version"
        " from durable._waiting_versions(_queue) as waiting);",
        "pgtap/versions.sql",
    ),
]

WORKERS: Final = [
    Mutant(
        "takes a dead worker for a live one",
        "workers.sql",
        "  select seen_at > at - interval '60 s';",
        "  select seen_at > at - interval '90 s';",
        "pgtap/workers.sql",
    ),
    Mutant(
        "keeps the sessions of dead workers",
        "workers.sql",
        "  perform durable._prune_sessions(_queue, _now);\n",
        "",
        "pgtap/workers.sql",
    ),
]

AUDIT: Final = [
    Mutant(
        "keeps audit entries for ever",
        "maintenance.sql",
        " durable._prune_audit(queue, batch_size * 10),",
        "",
        "pgtap/audit_log.sql",
    ),
    Mutant(
        "records a change of a queue that changes nothing",
        "queues.sql",
        "  if _created or _before <> durable._locked_policy(_queue) then",
        "  if _created or policy <> '{}' then",
        "pgtap/audit_log.sql",
    ),
]

DIAGNOSES: Final = [
    Mutant(
        "diagnoses the queues of others",
        "diagnose.sql",
        "    select * from durable.queues where durable._may_use(queues.roles) order by",
        "    select * from durable.queues order by",
        "pgtap/diagnose.sql",
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
        "          where _walks and not _of_failed\n            and tasks.queue = _queue and tasks.task_id < _before",
        "          where _walks and not _of_failed\n            and tasks.queue = _queue and tasks.task_id <= _before",
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
        "bulk.sql",
        "  perform durable._propagate_state(_queue, 'revive', retried.task_id, _queue,",
        "  perform durable._defer(_queue, 'waiter', retried.task_id, null, _queue,",
        "pgtap/bulk.sql",
    ),
    Mutant(
        "calls nothing busy that it could not cancel",
        "bulk.sql",
        "      _busy := _busy || _id;\n    end if;\n  end loop;\n  perform durable._ended",
        "      null;\n    end if;\n  end loop;\n  perform durable._ended",
        "test_reports_tasks_it_could_not_cancel_as_busy",
    ),
    Mutant(
        "calls busy what has finished",
        "bulk.sql",
        "    elsif durable._is_live(_queue, _id) then\n",
        "    else\n",
        "test_reports_tasks_it_could_not_cancel_as_busy",
    ),
    Mutant(
        "calls nothing busy that it could not try again",
        "bulk.sql",
        "      _busy := _busy || _id;\n      continue;\n    elsif",
        "      continue;\n    elsif",
        "test_reports_tasks_it_could_not_retry_as_busy",
    ),
    Mutant(
        "tries again below a parent that somebody is at",
        "bulk.sql",
        "_task.parent_task_id) = 'busy'\n",
        "_task.parent_task_id) = 'held'\n",
        "test_reports_the_child_of_a_locked_parent_as_busy",
    ),
]

HISTORY: Final = [
    Mutant(
        "tells of copied calls when they were made",
        "history.sql",
        "      when saved.claim = 0 then 'copied'\n",
        "",
        "pgtap/history.sql",
    ),
    Mutant(
        "does not tell a timeout from an answer",
        "history.sql",
        "      when saved.state = 'timed_out' then 'timed_out'\n",
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

PAUSES: Final = [
    Mutant(
        "claims from a paused queue",
        "claims.sql",
        "  into _policy, _is_logged, _paused_names, _has_lanes\n  from durable.queues\n"
        "  where queues.queue = _queue and queues.paused_at is null\n",
        "  into _policy, _is_logged, _paused_names, _has_lanes\n  from durable.queues\n"
        "  where queues.queue = _queue\n",
        "pgtap/pause.sql",
    ),
    Mutant(
        "lets workers wait for what is paused",
        "claims.sql",
        "  select queues.versions, queues.paused_names, durable._has_lanes(queues)\n"
        "  into _policy, _paused_names, _has_lanes",
        "  select queues.versions, null, durable._has_lanes(queues)\n"
        "  into _policy, _paused_names, _has_lanes",
        "pgtap/pause.sql",
    ),
    Mutant(
        "moves the names of a claim beside their places",
        "pause.sql",
        "    select case when not paused ? known.name then known.name end\n"
        "    from unnest(names) with ordinality as known (name, place)\n",
        "    select known.name\n"
        "    from unnest(names) with ordinality as known (name, place)\n"
        "    where not paused ? known.name\n",
        "pgtap/pause.sql",
    ),
    Mutant(
        "resumes without waking workers",
        "pause.sql",
        "  perform durable._notify_listeners(_queue, 'work');\n",
        "",
        "test_tells_an_idle_worker_of_a_resumed_queue",
    ),
    Mutant(
        "refuses children of a full queue",
        "spawn.sql",
        "_has_room boolean := _options.parent_task_id is not null; --",
        "_has_room boolean := false; --",
        "pgtap/queue_length.sql",
    ),
    Mutant(
        "counts the children of spawn_many",
        "queue_length.sql",
        "  where task.existing_id is null and (task.options).parent_task_id is null;",
        "  where task.existing_id is null;",
        "pgtap/queue_length.sql",
    ),
    Mutant(
        "keeps a queue full that was drained",
        "maintenance.sql",
        "  perform durable._update_is_full(queue);\n",
        "",
        "pgtap/queue_length.sql",
    ),
    Mutant(
        "counts tasks that sleep",
        "queue_length.sql",
        "          and tasks.available_at <= _now\n          and tasks.partition_key is null\n",
        "          and tasks.available_at is not null\n          and tasks.partition_key is null\n",
        "pgtap/queue_length.sql",
    ),
]

DEFAULTS: Final = [
    Mutant(
        "refuses the defaults of a spawn where they do not count",
        "spawn.sql",
        "  if coalesce(options ->> 'partition_key', options ->> 'priority') is not null then",
        "  if num_nonnulls(_options.partition_key, _options.priority) > 0 then",
        "pgtap/definitions.sql",
    ),
    Mutant(
        "lets the defaults of a spawn override what it gives",
        "checks.sql",
        "array['partition_key', 'priority']) || options;",
        "array['partition_key', 'priority']) || options || coalesce(options -> 'defaults', '{}');",
        "pgtap/definitions.sql",
    ),
    Mutant(
        "forgets the announced priority where all other options are given",
        "spawn.sql",
        "  where (task.options).omitted is not null or (task.options).priority is null\n  limit 1;",
        "  where (task.options).omitted is not null\n  limit 1;",
        "pgtap/definitions.sql",
    ),
]

FEATURES: Final = [
    *PAUSES,
    *PUBLISHING,
    *FOLLOWING,
    *FIRST,
    *ELSEWHERE,
    *VERSIONS,
    *WORKERS,
    *AUDIT,
    *DIAGNOSES,
    *LOOPS,
    *MANY,
    *HISTORY,
    *DEFAULTS,
]
