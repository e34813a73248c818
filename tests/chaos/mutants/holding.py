# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of who holds a task, and how an attempt ends."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["HOLDING"]

FENCE: Final = [
    Mutant(
        "completes what nobody holds",
        "attempts.sql",
        "tasks.task_id = done.task_id and tasks.claim = done.claim\n"
        "        and done.claim % 2 = 1",
        "tasks.task_id = done.task_id and tasks.claim = done.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "fails under any claim",
        "attempts.sql",
        "where tasks.queue = _queue and tasks.task_id = _hold.task_id and tasks.claim = _hold.claim\n",
        "where tasks.queue = _queue and tasks.task_id = _hold.task_id and tasks.claim >= _hold.claim\n",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "holds what nobody holds",
        "attempts.sql",
        "    and _hold.claim % 2 = 1\n  for no key update;",
        "  for no key update;",
        "pgtap/fence.sql",
    ),
    Mutant(
        "saves under any claim",
        "checkpoints.sql",
        "tasks.task_id = new.task_id and tasks.claim = new.claim\n",
        "tasks.task_id = new.task_id and tasks.claim >= new.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "extends the lease of a former claim",
        "claims.sql",
        "    where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim = _held.claim\n"
        "      and _held.claim % 2 = 1\n    for no key update skip locked;",
        "    where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim >= _held.claim\n"
        "      and _held.claim % 2 = 1\n    for no key update skip locked;",
        "pgtap/claims.sql",
    ),
    Mutant(
        "keeps the claim when a task is released",
        "claims.sql",
        "      claim = tasks.claim + 1,\n      state = 'pending',",
        "      claim = tasks.claim + 2,\n      state = 'pending',",
        "pgtap/claims.sql",
    ),
    Mutant(
        "keeps the claim when a task falls asleep",
        "waits.sql",
        "    claim = tasks.claim + 1,\n    state = 'sleeping',",
        "    claim = tasks.claim,\n    state = 'sleeping',",
        "pgtap/waits.sql",
    ),
    Mutant(
        "keeps the claim when an attempt fails",
        "attempts.sql",
        "    claim = tasks.claim + 1,\n    attempt = tasks.attempt + 1,",
        "    claim = tasks.claim,\n    attempt = tasks.attempt + 1,",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "keeps the claim of a cancelled task",
        "cancel.sql",
        "    claim = tasks.claim + tasks.claim % 2,\n",
        "",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "settles the waits of a task for a former claim",
        "resolve_waits.sql",
        "tasks.task_id = own.task_id and tasks.claim = own.claim\n      and own.claim % 2 = 1",
        "tasks.task_id = own.task_id and tasks.claim >= own.claim\n      and own.claim % 2 = 1",
        "pgtap/fence.sql",
    ),
    Mutant(
        "registers waits for a former claim",
        "waits.sql",
        "  perform durable._register_waits(_queue, _held, _now);\n",
        "  perform durable._register_waits(_queue, tasks, _now);\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "tells a cancelled holder that its claim is lost",
        "errors.sql",
        "    and tasks.claim = _refusal.claim + 1\n",
        "    and tasks.claim = _refusal.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "tells a former run that its repeated end is new",
        "attempts.sql",
        "    and tasks.claim = _has_ended.claim + 1\n",
        "    and tasks.claim > _has_ended.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "takes a lost lease for the repetition of a failure",
        "attempts.sql",
        "        and coalesce(tasks.error ->> 'type', '') not in ('$LeaseExpired', '$CrashLoop')\n",
        "",
        "pgtap/fence.sql",
    ),
    Mutant(
        "lets a former claim's step stand for the present one's",
        "checkpoints.sql",
        "select distinct on (own.task_id, own.name, own.claim) own.*",
        "select distinct on (own.task_id, own.name) own.*",
        "pgtap/fence.sql",
    ),
    Mutant(
        "answers for a task instead of for a claim",
        "checkpoints.sql",
        " and held.claim is not distinct from refused.claim",
        "",
        "pgtap/fence.sql",
    ),
    Mutant(
        "emits for a former claim",
        "children.sql",
        "  perform durable._hold_or_refuse(_queue, task_id, claim);\n  _recorded :=",
        "  _recorded :=",
        "pgtap/children.sql",
    ),
    Mutant(
        "spawns children for a former claim",
        "children.sql",
        "  perform durable._hold_or_refuse(_queue, task_id, claim);\n  _new :=",
        "  _new :=",
        "pgtap/children.sql",
    ),
]

CLAIMS: Final = [
    Mutant(
        "claims what is not due",
        "claims.sql",
        "      and tasks.name = _name\n      and tasks.version = _version\n      and tasks.available_at <= at\n",
        "      and tasks.name = _name\n      and tasks.version = _version\n      and tasks.available_at is not null\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims more than it was asked for",
        "claims.sql",
        "    _left := _left - cardinality(_due.places);\n",
        "",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims the youngest of a name",
        "claims.sql",
        "    order by tasks.available_at, tasks.task_id\n    limit batch_size\n",
        "    order by tasks.available_at desc, tasks.task_id desc\n    limit batch_size\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims names in their order, not by who has waited longest",
        "claims.sql",
        "    order by head.available_at, head.task_id\n",
        "    order by head.name\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims names it was not asked for",
        "claims.sql",
        "  _names text[] := coalesce(names, durable._waiting_names(_queue));\n  _versions text[] := array[''];\n  _version ",
        "  _names text[] := durable._waiting_names(_queue);\n  _versions text[] := array[''];\n  _version ",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims what is past its deadline",
        "claims.sql",
        "      and (tasks.expires_at > at) is not false -- expire_tasks cancels the others\n",
        "",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "waits for rows that others claim",
        "claims.sql",
        "    limit batch_size\n    for no key update skip locked\n  ) as due",
        "    limit batch_size\n    for no key update\n  ) as due",
        "test_gives_two_claims_different_tasks_without_waiting",
    ),
    Mutant(
        "starts execution_timeout anew at each claim",
        "claims.sql",
        "        else tasks.expires_at end,\n",
        "        else to_timestamp(_epoch + tasks.execution_timeout) end,\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "lets start_timeout end a task that has started",
        "claims.sql",
        "tasks.execution_timeout), tasks.deadline)\n",
        "tasks.execution_timeout), tasks.expires_at)\n",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "keeps the error of the attempt before",
        "claims.sql",
        "      error = null,\n      version = _lease",
        "      version = _lease",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "shortens a lease",
        "claims.sql",
        "set lease_expires_at = greatest(tasks.lease_expires_at, _expires_at)",
        "set lease_expires_at = _expires_at",
        "pgtap/claims.sql",
    ),
    Mutant(
        "releases what a worker knows",
        "claims.sql",
        "      and not tasks.task_id = any (known)\n",
        "",
        "pgtap/claims.sql",
    ),
    Mutant(
        "releases what other workers hold",
        "claims.sql",
        "      and tasks.worker = _worker\n",
        "",
        "pgtap/claims.sql",
    ),
    Mutant(
        "releases a task to the end of the line",
        "claims.sql",
        "coalesce(held.available_at, _now) as available_at",
        "_now as available_at",
        "pgtap/claims.sql",
    ),
    Mutant(
        "waits for the row of a task whose lease it extends",
        "claims.sql",
        "      and _held.claim % 2 = 1\n    for no key update skip locked;",
        "      and _held.claim % 2 = 1\n    for no key update;",
        "test_an_extension_of_an_expired_lease_gets_busy_and_then_lost",
    ),
]

ATTEMPTS: Final = [
    Mutant(
        "never runs out of attempts",
        "retry.sql",
        "(max_attempts is null or attempt < max_attempts)",
        "(max_attempts is null or attempt <= max_attempts)",
        "pgtap/retry.sql",
    ),
    Mutant(
        "retries what is not to be retried",
        "retry.sql",
        "coalesce(retry ->> 'kind', '') <> 'none'",
        "coalesce(retry ->> 'kind', '') <> 'never'",
        "pgtap/retry.sql",
    ),
    Mutant(
        "retries what is not retryable",
        "attempts.sql",
        "  elsif not (retryable and durable._may_retry",
        "  elsif not (durable._may_retry",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "delays the third attempt as the second",
        "retry.sql",
        "ln(_factor) * (attempt - 1)",
        "ln(_factor) * least(attempt - 1, 1)",
        "pgtap/retry.sql",
    ),
    Mutant(
        "delays beyond max_seconds",
        "retry.sql",
        "  _delay := least(_base * exp(_exponent), _most);",
        "  _delay := _base * exp(_exponent);",
        "pgtap/retry.sql",
    ),
    Mutant(
        "adds jitter instead of taking it off",
        "retry.sql",
        "_delay * (0.5 + random() / 2)",
        "_delay * (1 + random() / 2)",
        "pgtap/retry.sql",
    ),
    Mutant(
        "does not count an attempt whose lease was lost",
        "attempts.sql",
        "    attempt = tasks.attempt + 1,\n    state = case",
        "    attempt = tasks.attempt + case when outcome = 'lease_lost' then 0 else 1 end,\n    state = case",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "delays a task again whose lease was lost",
        "attempts.sql",
        "case when outcome = 'lease_lost' then 0\n",
        "case when outcome = 'lease_lost' then 1\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "begins an attempt after the deadline",
        "attempts.sql",
        "  if _next_at >= _task.expires_at then",
        "  if _next_at > _task.expires_at then",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "forgets the attempt that was lost",
        "attempts.sql",
        "  insert into durable.runs (queue, task_id, attempt, outcome, worker, ended_at, error)\n"
        "  values (_queue, task_id, _task.attempt, outcome, _task.worker, _now, error);\n",
        "",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "loses a result",
        "attempts.sql",
        "      result = place.result\n",
        "      result = null\n",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "leaves the deadline of a task that completed",
        "attempts.sql",
        "      lease_expires_at = null,\n      expires_at = null,\n      finished_at = at,",
        "      lease_expires_at = null,\n      finished_at = at,",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "tells nobody that a task has failed",
        "attempts.sql",
        "    perform durable._on_finished(_queue, _completed || _failed);",
        "    perform durable._on_finished(_queue, _completed);",
        "pgtap/waking.sql",
    ),
    Mutant(
        "leaves alive what lives below a failed task",
        "attempts.sql",
        "    perform durable._cascade_each(_queue, _failed, 1000);\n",
        "",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "ends leases before they are over",
        "recovery.sql",
        "tasks.lease_expires_at <= _now",
        "tasks.lease_expires_at <= _now + '1 s'",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "cancels before the deadline",
        "recovery.sql",
        "tasks.expires_at <= _now",
        "tasks.expires_at <= _now + '1 s'",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "leaves alive what lives below a task that was late",
        "recovery.sql",
        "    perform durable._cascade_each(queue, task_ids, 1000);\n",
        "",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "locks own rows in the order given",
        "attempts.sql",
        "      order by own.task_id\n      offset 0\n    ) as done",
        "      offset 0\n    ) as done",
        "test_waits_for_its_tasks_in_ascending_order",
    ),
]

HOLDING: Final = [
    *FENCE,
    *CLAIMS,
    *ATTEMPTS,
]
