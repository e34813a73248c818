# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of keys, of what is kept, and of what is looked at."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["KEEPING"]

KEYS: Final = [
    Mutant(
        "takes one key for other params",
        "spawn.sql",
        "    or _fingerprints is null and _task.params <> coalesce(new.params, 'null')\n",
        "",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "takes one key for params with another fingerprint",
        "spawn.sql",
        "        and idempotency_keys.fingerprint <> all (_fingerprints))",
        "        and false)",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "compares sealed params beside their fingerprint",
        "spawn.sql",
        "    or _fingerprints is null and _task.params",
        "    or _task.params",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "takes one key for another name",
        "spawn.sql",
        "  if _task.name <> new.name\n    or ",
        "  if ",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "says that a task was created that was there",
        "spawn.sql",
        "_task.attempt), _task.attempt, false);",
        "_task.attempt), _task.attempt, true);",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "keeps the key of a task that is gone",
        "retention.sql",
        "  delete from durable.idempotency_keys\n"
        "  where idempotency_keys.queue = _queue and idempotency_keys.key = _key;\n  return true;",
        "  return true;",
        "pgtap/retention.sql",
    ),
    Mutant(
        "frees the key of a child that stays for its parent",
        "retention.sql",
        "        when parent.times > 0 then false\n"
        "        when task.idempotency_key is not null then durable._free_key(_queue, task.idempotency_key)\n",
        "        when task.idempotency_key is not null\n"
        "          then durable._free_key(_queue, task.idempotency_key) and parent.times = 0\n"
        "        when parent.times > 0 then false\n",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes a task whose key somebody has just been told",
        "spawn.sql",
        "    for key share; -- cleanup keeps the task until the caller has its answer\n",
        ";",
        "test_does_not_delete_a_task_whose_key_was_just_returned",
    ),
    Mutant(
        "forgets the deadline of a spawned task",
        "spawn.sql",
        "      + make_interval(secs => (task.options).start_timeout), latest.moment), parent",
        "      + null::interval), parent",
        "pgtap/spawn_many.sql",
    ),
    Mutant(
        "starts a delayed task at once",
        "spawn.sql",
        "at + make_interval(secs => coalesce(options.delay, 0))",
        "at",
        "pgtap/reschedule.sql",
    ),
    Mutant(
        "leaves a start_timeout where it was when the start is moved",
        "reschedule.sql",
        "least(_task.expires_at + (_run_at - _task.available_at), _task.deadline) end",
        "_task.expires_at end",
        "pgtap/reschedule.sql",
    ),
    Mutant(
        "moves the start of a task that has started",
        "reschedule.sql",
        "_task.started_at is not null or _task.available_at is null",
        "_task.available_at is null",
        "pgtap/reschedule.sql",
    ),
]

UNIQUE: Final = [
    Mutant(
        "counts a finished task as unfinished",
        "dedup.sql",
        "    when 'unique' then _finished_at is null\n",
        "    when 'unique' then true\n",
        "pgtap/dedup.sql",
    ),
    Mutant(
        "counts a task for longer than the period",
        "dedup.sql",
        "    when 'throttle' then _spawned_at > at",
        "    when 'throttle' then _spawned_at >= at",
        "pgtap/dedup.sql",
    ),
    Mutant(
        "postpones a task for ever",
        "dedup.sql",
        "      least(durable._first_start(new.options, durable._now()),\n"
        "        _task.spawned_at + make_interval(secs => (new.options).max_wait)));",
        "      durable._first_start(new.options, durable._now()));",
        "pgtap/dedup.sql",
    ),
    Mutant(
        "replaces a task that has started",
        "dedup.sql",
        "(new.options).on_conflict = 'replace' and _task.claim = 0 and",
        "(new.options).on_conflict = 'replace' and",
        "pgtap/dedup.sql",
    ),
    Mutant(
        "deletes a task whose unique key somebody was just told",
        "dedup.sql",
        "      for key share; -- cleanup keeps the task until the caller has its answer\n",
        ";",
        "test_does_not_delete_a_task_that_was_just_returned",
    ),
    Mutant(
        "replaces a task that is being cancelled",
        "dedup.sql",
        "      and tasks.claim = 0 and tasks.finished_at is null\n    for no key update;\n",
        "      and tasks.claim = 0 and tasks.finished_at is null;\n",
        "test_waits_for_the_cancellation_of_the_task_that_it_would_replace",
    ),
    Mutant(
        "retries a task whose key an unfinished one has",
        "retry_task.sql",
        "    perform durable._retake_unique_key(_queue, task_id);\n",
        "    null;\n",
        "pgtap/dedup.sql",
    ),
    Mutant(
        "retries many whose keys unfinished ones have",
        "bulk.sql",
        "    continue when _key = 'lost';\n",
        "",
        "pgtap/dedup.sql",
    ),
    Mutant(
        "retries a task without its key for older snapshots",
        "dedup.sql",
        "    update durable.unique_keys\n    set task_id = task.task_id\n"
        "    where unique_keys.queue = _queue and unique_keys.kind = task.unique_kind\n"
        "      and unique_keys.name = task.name and unique_keys.key = task.unique_key;\n",
        "",
        "test_does_not_take_a_key_in_a_snapshot_from_before_a_retry",
    ),
    Mutant(
        "deletes a key that a later task has",
        "dedup.sql",
        "    and unique_keys.task_id = _free_unique_key.task_id\n  for update skip locked;",
        "  for update skip locked;",
        "pgtap/dedup.sql",
    ),
]

RETENTION: Final = [
    Mutant(
        "deletes children before their parent",
        "retention.sql",
        "        when parent.times > 0 then false\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "leaves the checkpoints of deleted tasks",
        "retention.sql",
        "  delete from durable.checkpoints where checkpoints.queue = _queue"
        " and checkpoints.ctid = any (of_checkpoints);\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "leaves the attempts of deleted tasks",
        "retention.sql",
        "  delete from durable.runs where runs.queue = _queue and runs.ctid = any (of_runs);\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes what is not old enough",
        "retention.sql",
        "  select durable._now() - make_interval(secs => queues.keep_tasks) into _cutoff",
        "  select durable._now() - make_interval(secs => queues.keep_tasks / 2) into _cutoff",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes a task that was just tried again",
        "retention.sql",
        "tasks.task_id = over.task_id and tasks.finished_at <= cutoff\n      offset 0\n"
        "      for update skip locked",
        "tasks.task_id = over.task_id\n      offset 0",
        "test_does_not_delete_a_task_that_is_being_retried",
    ),
    Mutant(
        "does not begin again once it has come round",
        "retention.sql",
        "    _next := _walked[batch_size];\n  end if;",
        "    _next := _walked[batch_size];\n  else\n    _next := _cleaned_to;\n  end if;",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes events that are awaited",
        "retention.sql",
        "  if found then\n    return false;\n  end if;\n  delete from durable.events",
        "  delete from durable.events",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes events that are young",
        "retention.sql",
        "    and (events.emitted_at is null or events.emitted_at <= cutoff)\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "keeps the places of events for who has finished",
        "retention.sql",
        "    and durable._is_live(_queue, waits.task_id);",
        ";",
        "pgtap/retention.sql",
    ),
]

LOOKS: Final = [
    Mutant(
        "counts the sleeping as ready",
        "stats.sql",
        "count(*) filter (where tasks.available_at <= durable._now()) as ready",
        "count(*) as ready",
        "pgtap/stats.sql",
    ),
    Mutant(
        "counts the failed as cancelled",
        "stats.sql",
        "count(*) filter (where tasks.state = 'cancelled') as cancelled",
        "count(*) filter (where tasks.state in ('failed', 'cancelled')) as cancelled",
        "pgtap/stats.sql",
    ),
    Mutant(
        "lists what finished tasks have waited for",
        "views.sql",
        "where tasks.finished_at is null;",
        ";",
        "pgtap/views.sql",
    ),
    Mutant(
        "gives a completed task without result none",
        "results.sql",
        "case when task.state = 'completed' then coalesce(task.result, 'null') end",
        "task.result",
        "pgtap/results.sql",
    ),
    Mutant(
        "takes a name of any length",
        "checks.sql",
        "  elsif octet_length(name) > max_bytes then",
        "  elsif false then",
        "pgtap/checks.sql",
    ),
    Mutant(
        "takes an empty name",
        "checks.sql",
        "  if name is null or btrim(name) = '' then",
        "  if name is null then",
        "pgtap/checks.sql",
    ),
    Mutant(
        "takes a long name whose characters are plain",
        "checks.sql",
        "    when octet_length(name) <= max_bytes and name ~",
        "    when name ~",
        "pgtap/checks.sql",
    ),
    Mutant(
        "takes an object for one that has only known keys",
        "checks.sql",
        "case when jsonb_typeof(given) = 'object' and given - known = '{}' then",
        "case when jsonb_typeof(given) = 'object' then",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes options it does not know",
        "checks.sql",
        "  perform durable._refuse_argument(format('unknown key",
        "  perform format(format('unknown key",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes numbers below the least",
        "checks.sql",
        "_value::numeric < minimum::numeric or ",
        "",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes a kind of retry that it does not know",
        "retry.sql",
        "  if retry ->> 'kind' is null or retry ->> 'kind' not in ('none', 'fixed', 'exponential') then",
        "  if retry ->> 'kind' is null then",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes a lease of no time",
        "claims.sql",
        "lease > 0",
        "lease >= 0",
        "pgtap/claims.sql",
    ),
    Mutant(
        "takes a wait without end",
        "waits.sql",
        "  elsif wait ->> 'until' ~* 'infinity' then",
        "  elsif wait ->> 'until' ~* 'never' then",
        "pgtap/waits.sql",
    ),
    Mutant(
        "takes two children of one name",
        "children.sql",
        "    having count(*) > 1\n",
        "    having count(*) > 2\n",
        "pgtap/children.sql",
    ),
]

KEEPING: Final = [
    *KEYS,
    *UNIQUE,
    *RETENTION,
    *LOOKS,
]
