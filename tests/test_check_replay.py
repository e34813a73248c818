"""`check_replay` tests changed code against saved histories, without a database."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, TypeAlias

import pydantic
import pytest

from durable import InvalidArgument, NonDeterminism, SyncTaskContext, TaskContext, task
from durable.testing import check_replay

Context: TypeAlias = TaskContext[Any]
Sync: TypeAlias = SyncTaskContext[Any]
Place: TypeAlias = tuple[str, int, int]
IN_LINE: list[Place] = [("a", 1, 0), ("b", 2, 1), ("c", 3, 2)]


@task(name="t")
async def three(number: int, ctx: Context) -> int:
    first = await ctx.step("a", never)
    await ctx.step("b", never)
    return first + await ctx.step("c", never)


@task(name="t")
def three_sync(number: int, ctx: Sync) -> int:
    first = ctx.step("a", never)
    ctx.step("b", never)
    return first + ctx.step("c", never)


@task(name="t")
async def branches(number: int, ctx: Context) -> None:
    async def branch(*names: str) -> None:
        for name in names:
            await ctx.step(name, never)

    await ctx.step("start", never)
    async with asyncio.TaskGroup() as group:
        group.create_task(branch("a", "b"))
        group.create_task(branch("c", "d"))
    await ctx.sleep_for("nap", 60)
    await ctx.step("end", never)


def never() -> int:
    raise AssertionError("a step was done")


def history(*places: Place, **more: Any) -> dict[str, Any]:
    rows = [
        {"name": name, "position": position, "after": after, "value": 1}
        for name, position, after in places
    ]
    head = {"version": 1, "queue": "default", "name": "t", "params": 3}
    return {**head, "checkpoints": rows, **more}


COLOURS = pytest.mark.parametrize("code", [three, three_sync], ids=["async", "sync"])


@COLOURS
@pytest.mark.parametrize("length", range(4))
def test_accepts_code_at_any_length_of_the_history(code: Any, length: int) -> None:
    check_replay(code, history(*IN_LINE[:length]))


@COLOURS
@pytest.mark.parametrize(
    ("places", "difference"),
    [
        ([("x", 1, 0)], ("x", "a", 1)),
        ([("a", 1, 0), ("x", 2, 1), ("c", 3, 2)], ("x", "b", 2)),
        ([("b", 1, 0), ("a", 2, 1)], ("b", "a", 1)),
        ([("a", 1, 0), ("c", 2, 1)], ("c", "b", 2)),
        ([*IN_LINE, ("d", 4, 3)], ("d", None, 4)),
    ],
    ids=["renamed first", "renamed", "swapped", "added", "removed last"],
)
def test_names_the_call_that_does_not_fit(
    code: Any, places: Any, difference: Any
) -> None:
    with pytest.raises(NonDeterminism) as caught:
        check_replay(code, history(*places))
    error = caught.value
    assert (error.expected, error.found, error.position) == difference


@pytest.mark.parametrize(
    "places",
    [
        [("start", 1, 0)],
        [("start", 1, 0), ("a", 2, 1), ("b", 4, 2)],
        [("start", 1, 0), ("c", 3, 1), ("d", 4, 2)],
        [("start", 1, 0), ("c", 2, 1), ("d", 3, 2), ("a", 4, 3), ("b", 5, 4)],
        [
            *[("start", 1, 0), ("a", 2, 1), ("c", 3, 1), ("b", 4, 3), ("d", 5, 3)],
            *[("$sleep:nap", 6, 5), ("end", 7, 6)],
        ],
    ],
    ids=["begun", "one branch", "the other", "one behind the other", "all"],
)
def test_accepts_branches_that_progressed_differently(places: Any) -> None:
    check_replay(branches, history(*places))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([("start", 1, 0), ("x", 2, 1), ("c", 3, 1), ("d", 4, 2)], "x"),
        ([("start", 1, 0), ("a", 2, 1), ("c", 3, 1), ("x", 4, 3)], "x"),
        (
            [
                *[("start", 1, 0), ("a", 2, 1), ("c", 3, 1), ("b", 4, 3), ("x", 5, 3)],
                *[("$sleep:nap", 6, 5)],
            ],
            "x",
        ),
    ],
    ids=["renamed first", "renamed second", "renamed before the end"],
)
def test_names_the_call_that_a_branch_no_longer_makes(
    places: Any, expected: str
) -> None:
    with pytest.raises(NonDeterminism) as caught:
        check_replay(branches, history(*places))
    assert caught.value.expected == expected


async def test_can_be_called_while_a_loop_runs() -> None:
    check_replay(three, history(*IN_LINE))


def test_accepts_a_mapping_json_or_a_file(tmp_path: Path) -> None:
    text = json.dumps(history(("x", 1, 0)))
    path = tmp_path / "history.json"
    path.write_text(text)
    for given in (json.loads(text), text, path, str(path)):
        with pytest.raises(NonDeterminism):
            check_replay(three, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "t"}, "no history of a task"),
        ("{", "no history of a task"),
        (history(version=2), "no history of a task"),
        (history(name="other"), "a history of task 'other', not of 't'"),
    ],
)
def test_refuses_anything_but_a_history_of_the_task(given: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_replay(three, given)


def test_reports_params_or_values_that_can_no_longer_be_read() -> None:
    with pytest.raises(pydantic.ValidationError):
        check_replay(three, history(params="three"))
    unreadable = history(("a", 1, 0))
    unreadable["checkpoints"][0]["value"] = "one"
    with pytest.raises(pydantic.ValidationError) as caught:
        check_replay(three, unreadable)
    assert caught.value.__notes__ == ["It was read from the history."]


def test_gives_the_task_its_recorded_context() -> None:
    seen: list[Any] = []

    @task(name="t")
    async def look(number: int, ctx: Context) -> None:
        seen.extend([number, ctx.state, ctx.headers, ctx.attempt, ctx.queue])

    recorded = history(headers={"tenant": "a"}, attempt=2, queue="mail")
    check_replay(look, recorded, state="shop")
    assert seen == [3, "shop", {"tenant": "a"}, 2, "mail"]


def test_accepts_code_that_fails_after_its_history() -> None:
    @task(name="t")
    async def failing(number: int, ctx: Context) -> None:
        await ctx.step("a", never)
        raise ConnectionError

    check_replay(failing, history(("a", 1, 0)))
    with pytest.raises(NonDeterminism) as caught:
        check_replay(failing, history(*IN_LINE))
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_reports_a_mismatch_that_the_code_swallows() -> None:
    @task(name="t")
    async def swallow(number: int, ctx: Context) -> None:
        for name in ("x", "a"):
            try:
                await ctx.step(name, never)
            except Exception:  # noqa: BLE001, S112 - as careless code does
                continue

    with pytest.raises(NonDeterminism):
        check_replay(swallow, history(("a", 1, 0)))


@pytest.mark.parametrize("places", [[("b", 2, 0)], [("b", 2, 0), ("c", 3, 1)]])
def test_accepts_a_call_that_was_made_and_not_saved(places: Any) -> None:
    """Its worker died, or it was cancelled: the replay leaves room for it."""

    @task(name="t")
    async def both(number: int, ctx: Context) -> None:
        await asyncio.gather(
            ctx.step("a", never), ctx.step("b", never), return_exceptions=True
        )
        await ctx.step("c", never)

    check_replay(both, history(*places))
