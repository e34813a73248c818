# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of families, and of tasks that are tried again or forked."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["FAMILY"]

FAMILIES: Final = [
    Mutant(
        "leaves alive what lives below in other queues",
        "cancel.sql",
        "  remaining := durable._propagate_to_other_queues(\n"
        "    _queue, _reaching, 'cascade', by_queue, by, null, remaining);\n",
        "",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "revives nobody in other queues",
        "cross_queue.sql",
        "    elsif _parent_state in ('failed', 'cancelled') then",
        "    elsif root_queue <> _queue or _parent_state in ('failed', 'cancelled') then",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "revives for a retry that is over",
        "cross_queue.sql",
        "  elsif (_state in ('failed', 'cancelled')) = (kind = 'revive') then\n",
        "  elsif kind <> 'revive' and _state not in ('failed', 'cancelled') then\n",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "cancels children, but not theirs",
        "cancel.sql",
        "    if _rest is not null then\n",
        "    exit;\n    if _rest is not null then\n",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "cancels nothing below what has finished",
        "cancel.sql",
        "      array_agg(child.task_id) filter (where task.finished_at is not null),\n",
        "      array_agg(child.task_id) filter (where child.task_id = any (cancelled)),\n",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "forgets whose end it was",
        "cancel.sql",
        "\n    'by', by, 'by_queue', nullif(by_queue, queue)",
        "\n    'by_queue', nullif(by_queue, queue)",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "takes another reason than the one given",
        "cancel.sql",
        "coalesce(reason, 'cancelled')",
        "'cancelled'",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "does not hold a parent while it gets a child",
        "spawn.sql",
        "  where tasks.queue = _queue and tasks.task_id = parent\n  for share;",
        "  where tasks.queue = _queue and tasks.task_id = parent;",
        "test_refuses_a_child_of_a_parent_that_was_just_cancelled",
    ),
    Mutant(
        "gives a finished task children",
        "spawn.sql",
        "  elsif _state in ('completed', 'failed', 'cancelled') then",
        "  elsif _state in ('failed', 'cancelled') then",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "revives no children",
        "retry_task.sql",
        "  perform durable._propagate_state(\n    _queue, 'revive', task_id,",
        "  perform durable._defer(_queue, 'waiter', task_id, null,",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "revives children below a parent that stays ended",
        "cross_queue.sql",
        "    elsif _parent_state in ('failed', 'cancelled') then",
        "    elsif false then",
        "test_revives_nothing_below_a_child_that_was_retried_and_failed",
    ),
    Mutant(
        "revives children of a parent that somebody is ending",
        "cross_queue.sql",
        "    if _parent_state = 'busy' then\n",
        "    if false then\n",
        "test_revives_nothing_below_a_child_that_is_being_cancelled",
    ),
    Mutant(
        "cancels with a parent what ended with its child",
        "cancel.sql",
        "from unnest(roots) as ended (task_id) order by 1 desc loop",
        "from unnest(roots) as ended (task_id) order by 1 loop",
        "test_revives_the_descendants_of_a_child_whose_parent_had_ended_too",
    ),
    Mutant(
        "does not revive with a task what had to stay ended with it",
        "cross_queue.sql",
        "      perform durable._record_cancelled_by_parent(_task);",
        "      null;",
        "test_revives_nothing_below_a_child_that_had_failed_before",
    ),
    Mutant(
        "tries again what has completed",
        "retry_task.sql",
        "  elsif _task.state not in ('failed', 'cancelled') then",
        "  elsif _task.state not in ('failed', 'cancelled', 'completed') then",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "gives a retried task no attempt",
        "retry_task.sql",
        "then tasks.attempt + 1\n        else tasks.max_attempts end",
        "then tasks.attempt\n        else tasks.max_attempts end",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "counts execution_timeout on after a retry",
        "retry_task.sql",
        "    started_at = null,\n",
        "",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "spawns a recorded child again",
        "children.sql",
        "    where saved.times = 0\n    order by task.ordinal\n",
        "    order by task.ordinal\n",
        "pgtap/children.sql",
    ),
    Mutant(
        "does not record that a child was there",
        "children.sql",
        "'attempt', spawned.attempt, 'created', spawned.created",
        "'attempt', spawned.attempt, 'created', true",
        "pgtap/children.sql",
    ),
    Mutant(
        "emits again what a task has emitted",
        "children.sql",
        "  if _recorded is not null then\n    return _recorded::text::boolean;\n  elsif _first then",
        "  if _first then",
        "pgtap/children.sql",
    ),
]

LIFECYCLE: Final = [
    Mutant(
        "keeps in a fork what ran beside its step",
        "fork.sql",
        "        or (ranked.saved).after < point.after and ranked.before + ranked.caught < point.after",
        "        or (ranked.saved).after < point.after",
        "pgtap/fork.sql",
    ),
    Mutant(
        "keeps in a fork what its step has led to",
        "fork.sql",
        "        or (ranked.saved).after < point.after and ranked.before + ranked.caught < point.after",
        "        or ranked.before + ranked.caught < point.after",
        "pgtap/fork.sql",
    ),
    Mutant(
        "runs a failure again that the origin of a fork had caught",
        "fork.sql",
        "      else ranked.was_caught\n",
        "      else false\n",
        "pgtap/fork.sql",
    ),
    Mutant(
        "takes the checkpoints of a fork as its origin counted them",
        "fork.sql",
        "    least(saved.after, rank() over (order by saved.after) - 1),",
        "    saved.after,",
        "pgtap/fork.sql",
    ),
    Mutant(
        "lets the first claim of a fork forget what it begins with",
        "fork.sql",
        "  set claim = 2",
        "  set claim = 0",
        "pgtap/fork.sql",
    ),
    Mutant(
        "revives what nobody's end had cancelled",
        "cross_queue.sql",
        "  select task.state = 'cancelled'\n    and (",
        "  select task.state = 'cancelled'\n    and (true or ",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "changes every task where no filter is said",
        "filter.sql",
        "  elsif filter = '{}' and not of_all then",
        "  elsif filter = '{}' and not of_all and of_all then",
        "pgtap/bulk.sql",
    ),
    Mutant(
        "counts the next attempt twice when its delay is skipped",
        "retry_task.sql",
        "    state = 'pending',\n    available_at = _now,\n    max_attempts",
        "    state = 'pending',\n    attempt = tasks.attempt + 1,\n    available_at = _now,\n    max_attempts",
        "pgtap/retry_task.sql",
    ),
]

FAMILY: Final = [
    *FAMILIES,
    *LIFECYCLE,
]
