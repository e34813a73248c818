"""The examples do what they say, each in a process of its own."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.processes import ROOT, Processes
from tests.support.wait import eventually

EXAMPLES = ROOT / "python-sdk" / "examples"
PRINTED = {
    "approval.py": ["declined", "nobody has decided", "paid 120", "still waiting for"],
    "fan_out.py": ["[('the', 5), ('to', 3)]"],
    "order_processing.py": ["charging 100 for order 7", "charge-7, sent with Post"],
    "same_transaction.py": ["order 1 is on its way", "tasks: 1"],
}


def test_has_a_test_for_every_example() -> None:
    assert sorted(PRINTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("example", PRINTED)
def test_shows_what_it_says(processes: Processes, example: str) -> None:
    shown = processes.python(str(EXAMPLES / example))
    assert shown.wait(deadline=60) == 0, shown.output()
    for words in PRINTED[example]:
        assert words in shown.output()


def test_goes_on_with_an_order_after_kill_9(
    processes: Processes, db: psycopg.Connection
) -> None:
    example = str(EXAMPLES / "order_processing.py")
    first = processes.python(example)
    first.wait_for("charging 100")
    state = "select state from durable.task_list"
    eventually(lambda: db.execute(state).fetchone() == ("sleeping",), what="its sleep")
    first.kill()
    second = processes.python(example)
    assert second.wait(deadline=60) == 0
    assert "charge-7, sent with Post" in second.output()
    assert "charging" not in second.output()
