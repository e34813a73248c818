"""The examples do what they say, each in its own process, killed in the middle."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.processes import ROOT, Process, Processes
from tests.support.wait import eventually

EXAMPLES = ROOT / "python-sdk" / "examples"
PRINTED = {
    "agent.py": ["[paying back order 7]", "and have paid back 120.", "forked: kettle"],
    "approval.py": ["declined", "nobody has decided", "paid 120", "still waiting for"],
    "charge_and_ship.py": [],  # kills itself, below
    "fan_out.py": ["[('the', 5), ('to', 3)]"],
    "fetch_sleep_write.py": [],  # sleeps and is killed meanwhile, below
    "fork_join.py": ["authorised 120, from shelf 700, risk 7%"],
    "order_processing.py": ["charging 100 for order 7", "charge-7, sent with Post"],
    "recover_order.py": ["charging 120 for order 7", "shipped to 2 New Street"],
    "research.py": ["looking for sources", "approved by Ada"],
    "same_transaction.py": ["order 1 is on its way", "tasks: 1"],
}
KILLED = -9
BURY = "update durable.tasks set lease_expires_at = now() where state = 'running'"
STATE = "select state from durable.tasks where parent_task_id is null"


def start(processes: Processes, example: str, crash: str = "") -> Process:
    return processes.python(str(EXAMPLES / example), env={"CRASH": crash})


def shown(processes: Processes, example: str) -> str:
    """Run an example to its successful end, and return its output."""
    process = start(processes, example)
    assert process.wait(deadline=60) == 0, process.output()
    return process.output()


def killed(processes: Processes, example: str, db: psycopg.Connection, at: str) -> str:
    """Run an example until it kills itself; return its output."""
    process = start(processes, example, crash=at)
    assert process.wait(deadline=60) == KILLED, process.output()
    db.execute(BURY)  # it would take two seconds otherwise
    return process.output()


def test_has_a_test_for_every_example() -> None:
    assert sorted(PRINTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("example", [name for name in PRINTED if PRINTED[name]])
def test_prints_what_its_text_says(processes: Processes, example: str) -> None:
    output = shown(processes, example)
    for words in PRINTED[example]:
        assert words in output


def test_continues_an_order_after_kill_9(
    processes: Processes, db: psycopg.Connection
) -> None:
    first = start(processes, "order_processing.py")
    first.wait_for("charging 100")
    eventually(lambda: db.execute(STATE).fetchone() == ("sleeping",), what="its sleep")
    first.kill()
    second = shown(processes, "order_processing.py")
    assert "charge-7, sent with Post" in second
    assert "charging" not in second


def test_charges_no_card_twice(processes: Processes, db: psycopg.Connection) -> None:
    first = killed(processes, "recover_order.py", db, at="after-charge")
    assert "charging 120" in first
    assert "shipping" not in first
    second = shown(processes, "recover_order.py")
    assert "charging 120" not in second
    assert second.count("shipping order 7 to 2 New Street") == 1
    assert "receipt: charge-7, parcel-7\nstatus: shipped to 2 New Street" in second


def test_sends_no_request_twice_and_writes_one_row(
    processes: Processes, db: psycopg.Connection
) -> None:
    first = start(processes, "fetch_sleep_write.py")
    kept = "select from durable.checkpoints where name = 'ask'"
    eventually(lambda: db.execute(kept).fetchone() is not None, what="the answer")
    eventually(lambda: db.execute(STATE).fetchone() == ("sleeping",), what="its sleep")
    first.kill()
    assert db.execute("select from weather").fetchall() == []
    second = shown(processes, "fetch_sleep_write.py")
    assert "result: blue" in second
    assert "requests of this process: 0" in second
    assert "rows: [('Oslo', 'blue')]" in second
    told = [line.split()[1] for line in second.splitlines() if line[0].isdigit()]
    assert told[:3] == ["spawned", "started", "step"]
    assert told[-3:] == ["slept", "step", "completed"]
    assert second.count("log: ") == len(["blue sky over Oslo", "slept well"])


def test_reads_no_source_twice(processes: Processes, db: psycopg.Connection) -> None:
    first = killed(processes, "research.py", db, at="before-approval")
    assert first.count("reading ") == len(["Lovelace", "Turing", "Hopper"])
    assert "writing the summary" not in first
    second = shown(processes, "research.py")
    assert "reading " not in second
    assert "looking for" not in second
    assert "sources: Lovelace 1843; Turing 1936; Hopper 1952" in second
    assert "approved by Ada" in second


def test_repeats_no_branch_that_was_done(
    processes: Processes, db: psycopg.Connection
) -> None:
    first = killed(processes, "fork_join.py", db, at="in-fraud")
    assert sorted(first.split()) == [
        "authorising",
        "reserving",
        "scoring",
        "validating",
    ]
    second = shown(processes, "fork_join.py").splitlines()
    done = ["scoring", "finalizing", "authorised 120, from shelf 700, risk 7%"]
    assert second[:3] == done
    told = [line.partition(" on ")[0].split() for line in second[3:]]
    assert told == [
        ["pay", "attempt", "1", "completed"],
        ["stock", "attempt", "1", "completed"],
        ["fraud", "attempt", "1", "lease_lost"],
        ["fraud", "attempt", "2", "completed"],
    ]


def test_another_worker_ships_the_order_when_one_has_died(
    processes: Processes, db: psycopg.Connection
) -> None:
    example = start(processes, "charge_and_ship.py")
    example.wait_for("shipping: the worker has died")
    db.execute(BURY)
    assert example.wait(deadline=60) == 0, example.output()
    assert example.output().count("payments: charging 120") == 1
    assert "charge of 120, parcel 7" in example.output()
    rows = [line.split() for line in example.output().splitlines() if line[1].isdigit()]
    assert [row[1:3] for row in rows] == [
        ["workflow:", "spawned"],
        ["workflow:", "started"],
        ["charge:", "spawned"],
        ["workflow:", "child_spawned"],
        ["charge:", "started"],
        ["charge:", "step"],
        ["charge:", "completed"],
        ["workflow:", "joined"],
        ["ship:", "spawned"],
        ["workflow:", "child_spawned"],
        ["ship:", "started"],
        ["ship:", "lease_lost"],
        ["ship:", "step"],
        ["ship:", "completed"],
        ["workflow:", "joined"],
        ["workflow:", "completed"],
    ]


def test_repeats_only_the_model_call_that_was_interrupted(
    processes: Processes, db: psycopg.Connection
) -> None:
    first = killed(processes, "agent.py", db, at="sorry")
    assert first.endswith("agent: We are sorry")
    assert "[paying back order 7]" in first
    second = shown(processes, "agent.py")
    assert "[paying back" not in second
    assert "[cut off]\nagent: We are sorry for the kettle, and have paid" in second
    assert "forked: kettle came in shards" in second
    asked = [line for line in second.splitlines() if "the model is asked" in line]
    assert asked == [
        "agent, attempt 1: the model is asked for answer 1",
        "agent, attempt 1: the model is asked for answer 2",
        "agent, attempt 1: the model is asked for answer 3",
        "agent, attempt 2: the model is asked for answer 3",
        "fork, attempt 1: the model is asked for answer 3",
    ]
