"""A name finds the same checkpoint on replay, or is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable._core.arguments import (
    Names,
    check_event_name,
    check_key,
    check_queue_name,
    check_step_name,
    check_task_name,
    default_task_name,
)
from durable.errors import InvalidArgument

Check: TypeAlias = Callable[[Any], str]

SHORT = (check_queue_name, check_task_name)
LONG = (check_event_name, check_key, check_step_name)
KINDS = ("", "sleep", "event", "spawn", "emit", "join", "send", "recv")

names = st.text(min_size=1, max_size=20)
calls = st.lists(st.tuples(st.sampled_from(KINDS), names), max_size=40)


@pytest.mark.parametrize(
    "name",
    ["orders", "packed:7", "a b", "ä", "名前", "item#x", "7", "a$", "#", "x#2y"],
)
@pytest.mark.parametrize("check", SHORT + LONG)
def test_accepts_any_printable_name(check: Check, name: Any) -> None:
    assert check(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "\t", "a\n", "a\0b", "\x1f", "a\x7f", "\ud800", 7, None, b"a"]
)
@pytest.mark.parametrize("check", SHORT + LONG)
def test_refuses_invalid_names(check: Check, name: Any) -> None:
    with pytest.raises(InvalidArgument):
        check(name)


@pytest.mark.parametrize(
    ("check", "limit"), [*((c, 100) for c in SHORT), *((c, 255) for c in LONG)]
)
def test_limits_names_in_bytes(check: Check, limit: int) -> None:
    for fitting in ("x" * limit, "ä" * (limit // 2)):
        assert check(fitting) == fitting
    for long in ("x" * (limit + 1), "ä" * (limit // 2 + 1)):
        with pytest.raises(InvalidArgument, match=str(limit)):
            check(long)


@pytest.mark.parametrize("name", ["$now", "$", "fetch#2", "#1", "a#b#007"])
def test_steps_cannot_use_durables_own_keys(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_step_name(name)


def test_numbers_repeats_within_one_branch() -> None:
    taken, branch = Names(), object()
    assert [taken.take("", "x", branch) for _ in range(3)] == ["x", "x#2", "x#3"]


def test_counts_each_kind_separately() -> None:
    taken = Names()
    assert [taken.take(kind, "x", None) for kind in KINDS] == [
        "x",
        "$sleep:x",
        "$event:x",
        "$spawn:x",
        "$emit:x",
        "$join:x",
        "$send:x",
        "$recv:x",
    ]
    assert [taken.take("now", "", None) for _ in range(2)] == ["$now", "$now#2"]
    assert taken.take("random", "", None) == "$random"


@pytest.mark.parametrize(("kind", "name"), [("", "fetch"), ("event", "x"), ("now", "")])
def test_refuses_one_name_in_two_branches(kind: str, name: str) -> None:
    taken, first, second = Names(), object(), object()
    taken.take(kind, name, first)
    with pytest.raises(RuntimeError, match=r"distinct names.*ctx\.scope"):
        taken.take(kind, name, second)
    assert taken.take(kind, name, first).endswith("#2")
    assert taken.take(kind, "other", second).endswith("other")


def test_distinguishes_an_event_that_ends_in_a_number_from_a_repeat() -> None:
    taken = Names()
    keys = [taken.take("event", name, None) for name in ("issue", "issue#2", "issue")]
    assert keys == ["$event:issue", "$event:issue#2#1", "$event:issue#2"]


@given(calls)
def test_gives_every_call_of_a_run_its_own_key(made: list[tuple[str, str]]) -> None:
    taken = Names()
    keys = [taken.take(kind, name, None) for kind, name in made if usable(kind, name)]
    assert len(keys) == len(set(keys))


@given(calls)
def test_gives_a_replay_the_same_keys(made: list[tuple[str, str]]) -> None:
    first, second = Names(), Names()
    for kind, name in made:
        assert first.take(kind, name, 1) == second.take(kind, name, 1)


@given(calls, st.randoms(use_true_random=False))
def test_gives_the_same_keys_however_branches_interleave(
    made: list[tuple[str, str]], random: Random
) -> None:
    branches = {"a": [*made], "b": [*made]}
    in_turn, mixed = Names(), Names()
    keys = {
        branch: [in_turn.take(kind, f"{branch}/{name}", branch) for kind, name in made]
        for branch in branches
    }
    order = ["a", "b"] * len(made)
    random.shuffle(order)
    seen: dict[str, list[str]] = {"a": [], "b": []}
    for branch in order:
        kind, name = made[len(seen[branch])]
        seen[branch].append(mixed.take(kind, f"{branch}/{name}", branch))
    assert seen == keys


def usable(kind: str, name: str) -> bool:
    """Whether a user could have given it: steps must not look like durable's keys."""
    if kind:
        return True
    try:
        check_step_name(name)
    except InvalidArgument:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "kebab"),
    [
        ("HTTPFetch", "http-fetch"),
        ("ProcessOrder", "process-order"),
        ("process_order", "process-order"),
        ("NotifyCustomerByHTTP", "notify-customer-by-http"),
        ("V2Import", "v2-import"),
        ("_Private", "private"),
        ("Simple", "simple"),
    ],
)
def test_names_a_task_after_its_class_in_kebab_case(name: str, kebab: str) -> None:
    assert default_task_name(name) == kebab
