# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of tallies, metrics and bounded lists."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["METRICS"]

METRICS: Final = [
    Mutant(
        "forgets that a retried task is live again",
        "retry_task.sql",
        "    durable._tally(_queue, _now, task.name, 'revived');",
        "    null;",
        "pgtap/tallies.sql",
    ),
    Mutant(
        "adds deleted tasks to the live ones",
        "tallies.sql",
        "      when kind in ('completed', 'failed', 'cancelled') then -greatest(tasks, 0)",
        "      when kind in ('completed', 'failed', 'cancelled') then -tasks",
        "pgtap/tallies.sql",
    ),
    Mutant(
        "subtracts deleted tasks from what happened",
        "tallies.sql",
        "      where folded.tasks > 0 and folded.kind <> 'revived'",
        "      where folded.kind <> 'revived'",
        "pgtap/tallies.sql",
    ),
    Mutant(
        "never folds what was committed late",
        "metrics.sql",
        "case when _starts_hour then '-infinity'\n    else _last - make_interval(mins => 1) end",
        "_last - make_interval(mins => 1)",
        "pgtap/tallies.sql",
    ),
    Mutant(
        "measures no more once the clock was put back",
        "metrics.sql",
        "      and cleanup_cursors.measured_at <= _now) is not true",
        "      ) is not true",
        "pgtap/tallies.sql",
    ),
    Mutant(
        "recounts without the tallies that are to be folded",
        "tallies.sql",
        "  where tallies.queue = _true_totals.queue",
        "  where false",
        "pgtap/tallies.sql",
    ),
    Mutant(
        "counts tasks of a retried attempt as those that waited",
        "attempts.sql",
        " filter (where ended.attempt = 1)",
        "",
        "pgtap/metrics.sql",
    ),
    Mutant(
        "loses minutes that become hours",
        "metrics.sql",
        "  insert into durable.metrics select hour.* from unnest(_hours) as hour;\n",
        "",
        "pgtap/metrics.sql",
    ),
    Mutant(
        "finds no task whose id is later than its spawn",
        "filter.sql",
        " + make_interval(secs => 10))\n  end;",
        ")\n  end;",
        "pgtap/filter.sql",
    ),
    Mutant(
        "misses tasks that sleep without a time",
        "filter.sql",
        "    where 'sleeping' = any (states) and waits.queue = _queue\n",
        "    where false and waits.queue = _queue\n",
        "pgtap/filter.sql",
    ),
]
