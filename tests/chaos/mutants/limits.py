# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of limits, partitions and priorities."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["LIMITS", "STRESSED"]

# These are also found by the recorded starts of tests/chaos/test_limits.py.
STRESSED: Final = [
    Mutant(
        "claims count in a partition without its lock",
        "lane_claims.sql",
        '      where partitions.queue = _queue and partitions.partition_key = own.key collate "C"\n'
        "      offset 0\n      for no key update skip locked\n    ) as held\n  );\n"
        "  if cardinality(_held) = cardinality(_keys)",
        '      where partitions.queue = _queue and partitions.partition_key = own.key collate "C"\n'
        "      offset 0\n    ) as held\n  );\n"
        "  if cardinality(_held) = cardinality(_keys)",
        "test_counts_what_another_claim_is_starting_in_a_partition",
    ),
    Mutant(
        "claims count in a queue without its lock",
        "lane_claims.sql",
        "    where partitions.queue = _queue and partitions.partition_key = ''\n"
        "    for no key update skip locked;",
        "    where partitions.queue = _queue and partitions.partition_key = '';",
        "test_counts_what_another_claim_is_starting_in_the_queue",
    ),
    Mutant(
        "a spawn does not hold its lane",
        "lanes.sql",
        "    limit 1\n    for key share skip locked\n  ) as known",
        "    limit 1\n  ) as known",
        "test_keeps_a_lane_to_which_a_transaction_is_adding",
    ),
    Mutant(
        "an end that cannot lock its partition defers nothing",
        "lanes.sql",
        "  ) as missed;",
        "  ) as missed where false;",
        "test_wakes_a_partition_whose_task_ends_while_a_claim_finds_it_full",
    ),
]

LIMITS: Final = [
    *STRESSED,
    Mutant(
        "a claim takes the turn of a partition whose task is just ending",
        "lane_turns.sql",
        "      where partitions.queue = _queue and partitions.partition_key = own.key\n"
        "      offset 0\n      for update skip locked",
        "      where partitions.queue = _queue and partitions.partition_key = own.key\n"
        "      offset 0\n      for no key update skip locked",
        "test_a_partition_whose_task_is_just_ending_keeps_its_turn",
    ),
    Mutant(
        "a claim takes a turn by limits that are just changing",
        "lane_turns.sql",
        "  where partitions.queue = _queue and partitions.partition_key = ''\n"
        "  for key share skip locked;",
        "  where partitions.queue = _queue and partitions.partition_key = '';",
        "test_gives_partitions_that_a_claim_finds_full_a_turn_under_a_new_limit",
    ),
    Mutant(
        "an end does not notice that another one may roll back",
        "lanes.sql",
        "        and lanes.turn_at is null\n      limit 1\n",
        "        and lanes.turn_at is null and false\n      limit 1\n",
        "test_wakes_a_partition_if_the_first_of_two_ends_rolls_back",
    ),
    Mutant(
        "claims of new partitions wait for each other",
        "lane_claims.sql",
        "      where pg_try_advisory_xact_lock(\n"
        "        hashtext('durable.partition'), hashtext(_queue || ' ' || own.key))\n",
        "",
        "test_claims_of_new_partitions_never_wait_for_each_other",
    ),
    Mutant(
        "deletes a lane without looking again",
        "lane_claims.sql",
        "      offset 0\n      for update skip locked\n    ) as held\n  );\nend;",
        "      offset 0\n    ) as held\n  );\nend;",
        "test_keeps_a_lane_to_which_a_transaction_is_adding",
    ),
    Mutant(
        "ends under an old snapshot look at what they cannot see",
        "lanes.sql",
        "  _sure boolean := durable._is_read_committed();",
        "  _sure boolean := true;",
        "test_ends_and_spawns_under_old_snapshots",
    ),
    Mutant(
        "counts resumed attempts as starts",
        "lane_claims.sql",
        "    if not resumes then\n      perform durable._record_starts",
        "    if true then\n      perform durable._record_starts",
        "pgtap/lanes.sql",
    ),
    Mutant(
        "serves one partition until it is empty",
        "lane_claims.sql",
        "order by allowed.rank, allowed.number",
        "order by allowed.number, allowed.rank",
        "pgtap/lanes.sql",
    ),
    Mutant(
        "does not put a partition behind the others",
        "lane_claims.sql",
        "    perform durable._put_behind(_queue, lanes, _behind, at);\n",
        "",
        "pgtap/lanes.sql",
    ),
    Mutant(
        "a completion frees no slot",
        "attempts.sql",
        "    if _keys is not null then\n      perform durable._free(_queue, _keys);",
        "    if false then\n      perform durable._free(_queue, _keys);",
        "pgtap/lanes.sql",
    ),
    Mutant(
        "a task that is woken is in no lane",
        "waking.sql",
        "  if _in_lanes is not null then",
        "  if false then",
        "pgtap/lanes.sql",
    ),
    Mutant(
        "tasks of a partition in strict order start side by side",
        "lane_claims.sql",
        "    if policy.partition_order = 'strict' and not resumes then",
        "    if false then",
        "pgtap/partition_order.sql",
    ),
    Mutant(
        "a task that sleeps does not hold its partition",
        "partition_order.sql",
        "array['running', 'sleeping', 'pending']",
        "array['running', 'pending']",
        "pgtap/partition_order.sql",
    ),
    Mutant(
        "a lane to which the next task is being added loses its turn",
        "partition_order.sql",
        "lane where lane.lane_id = any (_held));",
        "lane);",
        "test_keeps_the_turn_of_a_lane_to_which_the_next_task_is_being_added",
    ),
    Mutant(
        "the lane of the next task does not get the turn of another",
        "partition_order.sql",
        "as lane where lane.next_at is null",
        "as lane where false",
        "pgtap/partition_order.sql",
    ),
    Mutant(
        "a task that is rescheduled keeps those behind it waiting",
        "reschedule.sql",
        "    perform durable._free(_queue, array[_task.partition_key]); -- others may come first now\n",
        "",
        "pgtap/partition_order.sql",
    ),
    Mutant(
        "a lane does not rise",
        "ageing.sql",
        "        level.priority + floor(",
        "        level.priority + 0 * floor(",
        "pgtap/ageing.sql",
    ),
    Mutant(
        "a lane that has been served stays above the others",
        "lane_claims.sql",
        "  if policy.ageing is not null then\n    perform durable._reset_age",
        "  if false then\n    perform durable._reset_age",
        "pgtap/ageing.sql",
    ),
    Mutant(
        "a claim does not look for a task where its new priority is",
        "reschedule.sql",
        "  perform durable._enlist(_queue, array[reprioritize_task.task_id], true);\n",
        "",
        "pgtap/reschedule.sql",
    ),
    Mutant(
        "a list lacks partitions whose tasks sleep",
        "partitions.sql",
        "    durable._next_started_partition(_queue, _after, 'sleeping'),",
        "    null,",
        "pgtap/partitions.sql",
    ),
]
