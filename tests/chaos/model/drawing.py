"""Strategies that draw programs, and the arguments of the engine's calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

from hypothesis import strategies as st

from tests.chaos.model.things import SECOND, Refused

__all__ = ["DAY", "ERROR", "WORKERS", "Held", "Json", "as_json", "asked", "asked_wait"]
__all__ += ["by_name", "created", "event", "few", "held", "helds", "options", "payload"]
__all__ += ["batch_size", "rarely", "spans", "wait"]

Json: TypeAlias = Any
Held: TypeAlias = tuple[str, int]

DAY: Final = 86_400

NAMES: Final = ["a", "b"]
PARAMS: Final[list[Json]] = [{}, {}, None, [1]]
WORKERS: Final = ["w1", "w2"]
ERROR: Final = {"type": "ValueError", "message": "no"}
CERTAIN: Final = [
    {"kind": "none"},
    {"kind": "fixed", "base_seconds": 5},
    {"kind": "fixed", "base_seconds": 0},
    {"kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 10},
]
RANDOM: Final = [None, {"kind": "exponential", "base_seconds": 4, "jitter": True}]

few = st.integers(0, 9)
rarely = st.sampled_from([False, False, False, False, True])
spans = st.sampled_from([0, 0.5, 5, 60, 3600])
key = st.sampled_from([None, None, None, "k1", "k2"])
event = st.sampled_from(["e1", "e2", "e3"])
payload = st.sampled_from([None, 7, {"x": [1]}])
batch_size = st.sampled_from([1, 2, 100])


def options(**more: st.SearchStrategy[Json]) -> st.SearchStrategy[dict[str, Json]]:
    """Draw the options of a task. A random delay has no deadline to meet."""
    usual: dict[str, st.SearchStrategy[Json]] = {
        "task": st.sampled_from(NAMES),
        "params": st.sampled_from(PARAMS),
        **more,
    }
    rare: dict[str, st.SearchStrategy[Json]] = {
        "key": key,
        "max_attempts": st.sampled_from([1, 2, 3, None]),
        "start_timeout": spans,
    }
    return st.one_of(
        st.fixed_dictionaries(
            usual, optional={**rare, "retry": st.sampled_from(RANDOM)}
        ),
        st.fixed_dictionaries(
            {**usual, "retry": st.sampled_from(CERTAIN)},
            optional={**rare, "execution_timeout": spans},
        ),
    )


held = st.tuples(rarely, few)
helds = st.lists(held, min_size=1, max_size=3)
wait = st.one_of(
    st.fixed_dictionaries({"sleep": spans}),
    st.fixed_dictionaries({"event": event}, optional={"span": spans}),
    st.fixed_dictionaries(
        {"join": st.lists(few, max_size=3)}, optional={"span": spans}
    ),
)


def as_json(held: Held, **more: Json) -> dict[str, Json]:
    return {"task_id": held[0], "claim": held[1], **more}


def asked(new: dict[str, Json]) -> dict[str, Json]:
    """Return its options in the form that `spawn` takes."""
    same = {"max_attempts", "retry", "start_timeout", "execution_timeout"}
    named = {option: new[option] for option in same & new.keys()}
    if new.get("key") is not None:
        named["idempotency_key"] = new["key"]
    if new.get("parent") is not None:
        named["parent_task_id"] = new["parent"]
    return named


def created(told: Json) -> Iterator[str]:
    """Return the ids of the tasks that the engine has created."""
    rows = [] if isinstance(told, Refused) else told
    return iter([task_id for task_id, _, is_new in rows if is_new])


def asked_wait(wait: dict[str, Json]) -> dict[str, Json]:
    """Return a wait in the form that `suspend_tasks` takes."""
    said = {name: value for name, value in wait.items() if name != "span"}
    return said if "span" not in wait else said | {"seconds": wait["span"] / SECOND}


def by_name(rows: Iterable[tuple[Json, ...]]) -> list[tuple[Json, ...]]:
    """Return rows in a canonical order, without the ids of runs."""
    rows = list(rows)
    for *_, value in rows:
        if isinstance(value, dict):
            value.pop("run_id", None)
    return sorted(rows, key=lambda row: [str(cell) for cell in row[:3]])
