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
        "  perform durable._reach_below(_queue, _seen, 'ended_above', by_queue, by);\n",
        "",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "revives nobody in other queues",
        "elsewhere.sql",
        "    if found then\n      perform durable._revive(_queue, _below,",
        "    if found and false then\n      perform durable._revive(_queue, _below,",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "revives for a retry that is over",
        "elsewhere.sql",
        "note.kind = 'revived_above' and _held and _state not in ('failed', 'cancelled')",
        "note.kind = 'revived_above'",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "cancels children, but not theirs",
        "cancel.sql",
        "          and tasks.parent_task_id = tree.task_id\n",
        "          and tasks.parent_task_id = tree.task_id and tree.task_id = root\n",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "cancels nothing below what has finished",
        "cancel.sql",
        "          and tasks.parent_task_id = tree.task_id\n",
        "          and tasks.parent_task_id = tree.task_id and (tree.task_id = root or exists (\n"
        "            select from durable.tasks as alive where alive.queue = _queue\n"
        "              and alive.task_id = tree.task_id and alive.finished_at is null))\n",
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
        "revives children that were cancelled by somebody else",
        "retry_task.sql",
        "      and durable._fell_with(tasks, _ends, root.complete_by)\n",
        "      and tasks.state = 'cancelled'\n",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "revives no children",
        "retry_task.sql",
        "  perform durable._revive_below(_queue, _task, _deadline);\n",
        "",
        "pgtap/retry_task.sql",
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
        "then tasks.attempt + 1 else tasks.max_attempts end",
        "then tasks.attempt else tasks.max_attempts end",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "counts max_duration on after a retry",
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
        "      least(saved.after, rank() over (order by saved.after) - 1),",
        "      saved.after,",
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
        "revives with many what nobody's end had cancelled",
        "elsewhere.sql",
        "        and durable._fell_with(tasks, _root, note.root_deadline)\n      offset 0\n"
        "    ) as taken\n    order by taken.task_id\n  loop\n    select * into _below\n"
        "    from durable.tasks\n    where tasks.queue = _queue\n      and tasks.task_id = _id\n"
        "      and durable._fell_with(tasks, _root, note.root_deadline)\n",
        "        and tasks.state = 'cancelled'\n      offset 0\n"
        "    ) as taken\n    order by taken.task_id\n  loop\n    select * into _below\n"
        "    from durable.tasks\n    where tasks.queue = _queue\n      and tasks.task_id = _id\n"
        "      and tasks.state = 'cancelled'\n",
        "pgtap/many.sql",
    ),
    Mutant(
        "changes every task where no filter is said",
        "filter.sql",
        "  elsif filter = '{}' and not of_all then",
        "  elsif filter = '{}' and not of_all and of_all then",
        "pgtap/many.sql",
    ),
    Mutant(
        "counts the next attempt twice when its delay is skipped",
        "retry_task.sql",
        "  perform durable._wake(_queue, task.task_id);",
        "  perform durable._revive(_queue, task.task_id);",
        "pgtap/retry_task.sql",
    ),
]

FAMILY: Final = [
    *FAMILIES,
    *LIFECYCLE,
]
