# ruff: noqa: FBT001 - what a rule is given is drawn, and given by name
"""Programs of clients, workers and housekeepers, played to the engine and the model.

After each step both must have said the same, and hold the same.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
)

from tests.chaos.model.comparing import agree, check
from tests.chaos.model.engine import Engine, text
from tests.chaos.model.looking import (
    REFUSED,
    REFUSED_OF_TASKS,
    expected_looks,
    looks,
)
from tests.chaos.model.specification import Model
from tests.chaos.model.things import SECOND, Refused, iso, micro

__all__ = ["Machine"]

Json: TypeAlias = Any
Held: TypeAlias = tuple[str, int]

NUMBERS = itertools.count()
START: Final = 1_900_000_000 * SECOND
DAY: Final = 86_400
EVEN: Final = 6  # beyond it a late caller takes whatever number a task has

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
quantity = st.sampled_from([1, 2, 100])


def options(**more: st.SearchStrategy[Json]) -> st.SearchStrategy[dict[str, Json]]:
    """What a task is spawned with. A random delay has no deadline to meet."""
    usual: dict[str, st.SearchStrategy[Json]] = {
        "task": st.sampled_from(NAMES),
        "params": st.sampled_from(PARAMS),
        **more,
    }
    rare: dict[str, st.SearchStrategy[Json]] = {
        "key": key,
        "max_attempts": st.sampled_from([1, 2, 3, None]),
        "max_delay": spans,
    }
    return st.one_of(
        st.fixed_dictionaries(
            usual, optional={**rare, "retry": st.sampled_from(RANDOM)}
        ),
        st.fixed_dictionaries(
            {**usual, "retry": st.sampled_from(CERTAIN)},
            optional={**rare, "max_duration": spans},
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


class Machine(RuleBasedStateMachine):
    """A queue of its own, played with by everybody in turn."""

    def __init__(self, engine: Engine, count: Counter[str]) -> None:
        super().__init__()
        self.engine = engine
        self.count = count
        self.model = Model(START)
        self.said: list[Callable[[], None]] = []
        self.claims: list[Held] = []
        self.revived: set[str] = set()
        self.engine.begin(f"q{next(NUMBERS)}", START)

    # How a step is played

    def play(
        self,
        ask: Callable[[], Json],
        expect: Callable[[Json], Json],
        *,
        old: bool = False,
    ) -> None:
        """Ask the engine, then the model; what the engine has said gives it the ids."""
        if old:
            self.engine.in_an_old_snapshot(begin=True)
        self.model.latest = not old
        try:
            told: Json = ask()
        except Refused as refusal:
            told = refusal
            if old:
                self.engine.give_up()
        else:
            if old:
                self.engine.in_an_old_snapshot(begin=False)
        try:
            expected: Json = expect(told)
        except Refused as refusal:
            expected = refusal
        if isinstance(told, Refused) and isinstance(expected, Refused):
            assert told.codes <= expected.codes, f"{told!r} instead of {expected!r}"
        else:
            assert told == expected, f"said {told!r} instead of {expected!r}"
        self.model.latest = True
        self.count["steps"] += 1
        agree(self.model, self.engine.look())
        check(self.model, self.revived)

    def tick(self) -> None:
        """Ids follow the order of calls if no two are made in a millisecond."""
        self.model.now += SECOND // 1000
        self.engine.set_clock(self.model.now)

    def id(self, number: int) -> str:
        """Return one of the tasks, the youngest first; or of none."""
        ids = list(self.model.tasks)
        if not ids:
            return "00000000-0000-7000-8000-000000000000"
        return ids[-1 - number % len(ids)]

    def hold(self, which: tuple[bool, int]) -> Held:
        """Return a claim: one that holds; with `late` any there ever was, or none."""
        late, number = which
        if late and number > EVEN:
            task_id = self.id(number)
            return task_id, self.model.tasks[task_id].claim if self.model.tasks else 0
        running = [
            (task_id, task.claim)
            for task_id, task in self.model.tasks.items()
            if task.lease is not None
        ]
        some = self.claims if late or not running else running
        return some[-1 - number % len(some)]

    def holds(self, which: list[tuple[bool, int]]) -> list[Held]:
        return list(dict.fromkeys(map(self.hold, which)))

    def again(self, play: Callable[[], None]) -> None:
        """Play, and remember it to be said again."""
        self.said.append(play)
        play()

    # Clients

    @rule(new=options(parent=st.none() | few), old=rarely)
    def spawn(self, new: dict[str, Json], old: bool) -> None:
        self.tick()
        new = {**new, "parent": self.parent(new["parent"])}
        arguments = new["task"], json.dumps(new["params"]), json.dumps(asked(new))
        self.play(
            lambda: self.engine.table(
                "spawn",
                self.engine.queue,
                *arguments,
                columns="task_id, attempt, created",
            ),
            lambda told: self.model.spawn([new], created(told)),
            old=old,
        )

    @rule(news=st.lists(options(parent=st.none() | few), max_size=3))
    def spawn_many(self, news: list[dict[str, Json]]) -> None:
        self.tick()
        news = [{**new, "parent": self.parent(new["parent"])} for new in news]
        tasks = text(
            {"task": new["task"], "params": new["params"], "options": asked(new)}
            for new in news
        )
        self.play(
            lambda: self.engine.table(
                "spawn_many",
                self.engine.queue,
                tasks,
                columns="task_id, attempt, created",
            ),
            lambda told: self.model.spawn(news, created(told)),
        )

    def parent(self, number: int | None) -> str | None:
        return None if number is None else self.id(number)

    @rule(event=event, payload=payload, old=rarely)
    def emit(self, event: str, payload: Json, old: bool) -> None:
        self.tick()
        self.play(
            lambda: self.engine.call(
                "emit_event", self.engine.queue, event, json.dumps(payload)
            ),
            lambda _: self.model.emit(event, payload),
            old=old,
        )

    @rule(number=few, old=rarely)
    def cancel(self, number: int, old: bool) -> None:
        self.tick()
        task_id = self.id(number)
        self.play(
            lambda: self.engine.call(
                "cancel_task", self.engine.queue, task_id, "enough"
            ),
            lambda _: self.model.cancel(task_id, "enough"),
            old=old,
        )

    @rule(
        number=few, most=st.sampled_from([None, None, 1, 3]), new=rarely, worst=rarely
    )
    def retry(self, number: int, most: int | None, new: bool, worst: bool) -> None:
        self.tick()
        badly = [
            task_id
            for task_id, task in self.model.tasks.items()
            if task.state in {"failed", "cancelled"}
        ]
        task_id = self.id(number)
        if badly and not worst:
            task_id = badly[number % len(badly)]
        options = {"spawn_new": new, **({} if most is None else {"max_attempts": most})}
        self.revived.add(task_id)
        self.play(
            lambda: self.engine.table(
                "retry_task",
                self.engine.queue,
                task_id,
                json.dumps(options),
                columns="task_id, attempt, created",
            ),
            lambda told: [
                self.model.retry(task_id, most, created(told), spawn_new=new)
            ],
        )

    # Workers

    @rule(
        worker=st.sampled_from(WORKERS),
        names=st.sampled_from([None, None, None, ["a"], ["b", "nobody"]]),
        quantity=st.sampled_from([0, 1, 1, 2, 2, 5, 5, 5]),
        lease=st.sampled_from([1, 30, 30, 600]),
        load=st.booleans(),
    )
    def claim(
        self,
        worker: str,
        names: list[str] | None,
        quantity: int,
        lease: int,
        load: bool,
    ) -> None:
        columns = "task_id, claim, name, attempt, params, parent_task_id,"
        columns += " public.us(deadline_at), public.us(available_at)"
        taken: list[Held] = []

        def ask() -> Json:
            arguments = self.engine.queue, worker, names, quantity, lease
            return sorted(self.engine.table("claim_tasks", *arguments, columns=columns))

        def expect(_: Json) -> Json:
            claimed = self.model.claim(worker, names, quantity, lease * SECOND)
            taken.extend((task_id, task.claim) for task_id, task, _ in claimed)
            return sorted(
                (
                    task_id,
                    task.claim,
                    task.name,
                    task.attempt,
                    task.params,
                    task.parent,
                    task.deadline,
                    since,
                )
                for task_id, task, since in claimed
            )

        self.play(ask, expect)
        self.claims.extend(taken)
        if load and taken:
            self.load_(taken)

    @precondition(lambda self: self.claims)
    @rule(which=helds)
    def load(self, which: list[tuple[bool, int]]) -> None:
        self.load_(self.holds(which))

    def load_(self, held: list[Held]) -> None:
        held = list(dict(held).items())
        columns = "task_id, name, position, after, state, value"
        tasks = text(as_json(one) for one in held)
        self.play(
            lambda: by_name(
                self.engine.table(
                    "load_checkpoints", self.engine.queue, tasks, columns=columns
                )
            ),
            lambda _: by_name(
                (one[0], name, saved.position, saved.after, saved.state, saved.value)
                for one in held
                for name, saved in self.model.load(*one).items()
            ),
        )

    @precondition(lambda self: self.claims)
    @rule(which=helds, steps=st.lists(few, min_size=1, max_size=3), value=payload)
    def save(
        self, which: list[tuple[bool, int]], steps: list[int], value: Json
    ) -> None:
        saves = self.steps(which, steps, value)
        self.again(lambda: self.tell("save_checkpoints", saves=saves))

    @precondition(lambda self: self.claims)
    @rule(which=helds, result=payload)
    def complete(self, which: list[tuple[bool, int]], result: Json) -> None:
        ends = [as_json(one, result=result) for one in self.holds(which)]
        self.again(lambda: self.tell("complete_tasks", completions=ends))

    @precondition(lambda self: self.claims)
    @rule(which=helds, retryable=st.sampled_from([True, True, False]), old=rarely)
    def fail(self, which: list[tuple[bool, int]], retryable: bool, old: bool) -> None:
        self.tick()
        ends = [
            as_json(one, error=ERROR, retryable=retryable) for one in self.holds(which)
        ]
        self.again(lambda: self.tell("fail_tasks", failures=ends, old=old))

    @precondition(lambda self: self.claims)
    @rule(which=helds, steps=st.lists(few, max_size=3), done=helds, old=rarely)
    def flush(
        self,
        which: list[tuple[bool, int]],
        steps: list[int],
        done: list[tuple[bool, int]],
        old: bool,
    ) -> None:
        self.tick()
        saves = self.steps(which, steps, 1)
        ends = [as_json(one, result=2) for one in self.holds(done)[1:]]
        falls = [
            as_json(one, error=ERROR, retryable=True) for one in self.holds(done)[:1]
        ]
        self.again(
            lambda: self.tell(
                "flush", saves=saves, completions=ends, failures=falls, old=old
            )
        )

    def steps(
        self, which: list[tuple[bool, int]], steps: list[int], value: Json
    ) -> list[Json]:
        return [
            as_json(
                one,
                name=f"step {step}",
                value=value,
                state="failed" if step == 0 else "done",
                position=step,
                after=step // 2,
            )
            for one in self.holds(which)
            for step in dict.fromkeys(steps)
        ]

    def tell(
        self,
        function: str,
        saves: list[Json] | None = None,
        completions: list[Json] | None = None,
        failures: list[Json] | None = None,
        *,
        old: bool = False,
    ) -> None:
        """Write under claims, by one function for all or for one kind."""
        parts = [saves or [], completions or [], failures or []]

        def ask() -> Json:
            said = [text(part) if part else None for part in parts]
            given = said if function == "flush" else [one for one in said if one]
            return sorted(self.engine.table(function, self.engine.queue, *given))

        def expect(_: Json) -> Json:
            told = self.model.flush(*parts)
            if function == "flush":
                return sorted(
                    (who[0], outcome)
                    for who, outcome in told.items()
                    if outcome != "ok"
                )
            said = itertools.chain(*parts)
            return sorted(
                (one["task_id"], told[one["task_id"], one["claim"]]) for one in said
            )

        self.play(ask, expect, old=old)

    @precondition(lambda self: self.claims)
    @rule(
        which=helds,
        waits=st.lists(wait, min_size=1, max_size=3),
        leave=st.sampled_from([True, True, True, False]),
        old=rarely,
    )
    def suspend(
        self,
        which: list[tuple[bool, int]],
        waits: list[dict[str, Json]],
        leave: bool,
        old: bool,
    ) -> None:
        self.tick()
        awaited = [self.wait(place, one) for place, one in enumerate(waits)]
        tasks = [as_json(one, waits=awaited) for one in self.latest(which)]
        said = text(
            {**one, "waits": list(map(asked_wait, one["waits"]))} for one in tasks
        )
        function = "suspend_tasks" if leave else "poll_waits"
        columns = "task_id, outcome, name, state, value"
        self.again(
            lambda: self.play(
                lambda: by_name(
                    self.engine.table(
                        function, self.engine.queue, said, columns=columns
                    )
                ),
                lambda _: by_name(self.model.suspend(tasks, leave=leave)),
                old=old,
            )
        )

    def latest(self, which: list[tuple[bool, int]]) -> list[Held]:
        """Of claims on the same task, one."""
        return list(dict(self.holds(which)).items())

    def wait(self, place: int, given: dict[str, Json]) -> dict[str, Json]:
        """What is waited for, and the name that stands for it."""
        made: dict[str, Json] = {"position": place, "after": place}
        if "span" in given:
            made["span"] = micro(given["span"])
        if "sleep" in given:
            span = given["sleep"]
            return made | {"name": f"$sleep {span}", "span": micro(span)}
        if "event" in given:
            return made | {"name": f"$event {given['event']}", "event": given["event"]}
        joined = [self.id(number) for number in given["join"]]
        name = f"$join {place} {len(joined)}"
        return made | {"name": name, "task_ids": joined}

    @precondition(lambda self: self.claims)
    @rule(which=helds, later=st.none() | spans)
    def release(self, which: list[tuple[bool, int]], later: float | None) -> None:
        until = None if later is None else self.model.now + round(later * SECOND)
        more = {} if until is None else {"available_at": iso(until)}
        held = self.holds(which)
        tasks = text(as_json(one, **more) for one in held)
        self.play(
            lambda: sorted(
                self.engine.table("release_tasks", self.engine.queue, tasks)
            ),
            lambda _: sorted((one[0], self.model.release(*one, until)) for one in held),
        )

    @rule(worker=st.sampled_from(WORKERS), known=st.lists(few, max_size=2))
    def release_unknown(self, worker: str, known: list[int]) -> None:
        ids = [self.id(number) for number in known]
        self.play(
            lambda: self.engine.rows(
                "select durable.release_unknown(%s, %s, %s::uuid[])",
                self.engine.queue,
                worker,
                ids,
            )[0][0],
            lambda _: self.model.release_unknown(worker, ids),
        )

    @precondition(lambda self: self.claims)
    @rule(which=helds, lease=st.sampled_from([1, 30, 600]))
    def extend(self, which: list[tuple[bool, int]], lease: int) -> None:
        held = self.holds(which)
        tasks = text(as_json(one) for one in held)
        self.play(
            lambda: sorted(
                self.engine.table("extend_leases", self.engine.queue, tasks, lease)
            ),
            lambda _: sorted(
                (one[0], self.model.extend(*one, lease * SECOND)) for one in held
            ),
        )

    @precondition(lambda self: self.claims)
    @rule(which=held, news=st.lists(options(), min_size=1, max_size=2), place=few)
    def spawn_children(
        self, which: tuple[bool, int], news: list[dict[str, Json]], place: int
    ) -> None:
        self.tick()
        one = self.hold(which)
        children = [
            {**new, "name": f"$child {place + i}"} for i, new in enumerate(news)
        ]
        said = text(
            {
                "name": child["name"],
                "task": child["task"],
                "params": child["params"],
                "options": asked(child),
            }
            for child in children
        )
        columns = "name, task_id, attempt, created"

        def expect(told: Json) -> Json:
            rows = [] if isinstance(told, Refused) else [row[1:] for row in told]
            fresh = [row for row in rows if row[0] not in self.model.tasks]
            return self.model.spawn_children(*one, children, created(fresh))

        self.again(
            lambda: self.play(
                lambda: self.engine.table(
                    "spawn_children", self.engine.queue, *one, said, columns=columns
                ),
                expect,
            )
        )

    @precondition(lambda self: self.claims)
    @rule(which=held, event=event, payload=payload, old=rarely)
    def emit_from_task(
        self, which: tuple[bool, int], event: str, payload: Json, old: bool
    ) -> None:
        self.tick()
        one = self.hold(which)
        said = f"$emit {event}", event, payload
        self.again(
            lambda: self.play(
                lambda: self.engine.call(
                    "emit_from_task",
                    self.engine.queue,
                    *one,
                    *said[:2],
                    json.dumps(said[2]),
                ),
                lambda _: self.model.emit_from_task(*one, *said),
                old=old,
            )
        )

    @precondition(lambda self: self.said)
    @rule(number=few)
    def say_again(self, number: int) -> None:
        """The answer was lost, or the packet came late."""
        self.tick()
        self.said[-1 - number % len(self.said)]()

    # Time, and what it ends

    @rule(
        kind=st.sampled_from(["before", "at", "at", "after", "day"]),
        which=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def pass_time(self, kind: str, which: int) -> None:
        moments = sorted(
            at
            for task in self.model.tasks.values()
            for at in (
                task.available_at,
                task.lease,
                task.deadline,
                *(wait.deadline for wait in task.waits.values()),
            )
            if at is not None and at > self.model.now
        )
        at = self.model.now + SECOND
        if kind == "day":
            at = self.model.now + DAY * SECOND
        elif moments:
            at = moments[which % len(moments)]
            at += {"before": -1, "at": 0, "after": SECOND}[kind]
        self.model.now = max(self.model.now, at)
        self.engine.set_clock(self.model.now)

    @rule(
        what=st.sampled_from(
            ["expire_leases", "expire_deadlines", "cleanup", "prune_events"]
        ),
        quantity=quantity,
        old=rarely,
    )
    def keep(self, what: str, quantity: int, old: bool) -> None:
        self.tick()
        old = old and what.startswith("expire")
        if self.has_ties():
            quantity = 100
        self.play(
            lambda: self.engine.call(what, self.engine.queue, quantity),
            lambda _: getattr(self.model, what)(quantity),
            old=old,
        )

    @rule(old=rarely)
    def apply_notes(self, old: bool) -> None:
        self.tick()
        order = self.engine.look().notes
        self.play(
            lambda: self.engine.call("apply_notes", self.engine.queue),
            lambda _: self.model.apply_notes(order),
            old=old,
        )

    @rule()
    def keep_house(self) -> None:
        self.tick()
        order = self.engine.look().notes

        def expect(_: Json) -> Json:
            return [
                (
                    self.model.expire_leases(100),
                    self.model.expire_deadlines(100),
                    self.model.apply_notes(order),
                    self.model.cleanup(1000),
                    self.model.prune_events(1000),
                )
            ]

        self.play(lambda: self.engine.table("keep_house", self.engine.queue), expect)

    @rule(numbers=st.lists(few, max_size=3))
    def look(self, numbers: list[int]) -> None:
        """Statistics, views and results."""
        ids = list(dict.fromkeys(map(self.id, numbers)))
        self.play(
            lambda: looks(self.engine, ids),
            lambda _: expected_looks(self.model, ids),
        )

    @rule(wrong=st.sampled_from(REFUSED))
    def refuse(self, wrong: tuple[str, str, list[Json]]) -> None:
        """What is refused changes nothing."""
        function, code, arguments = wrong

        def expect(_: Json) -> Json:
            raise Refused(code)

        self.play(
            lambda: self.engine.table(function, self.engine.queue, *arguments), expect
        )

    @precondition(lambda self: self.claims)
    @rule(which=held, wrong=st.sampled_from(REFUSED_OF_TASKS))
    def refuse_of_a_task(
        self, which: tuple[bool, int], wrong: tuple[str, list[Json]]
    ) -> None:
        function, waits = wrong
        tasks = text([as_json(self.hold(which), waits=waits)])

        def expect(_: Json) -> Json:
            raise Refused("22023")

        self.play(lambda: self.engine.table(function, self.engine.queue, tasks), expect)

    @precondition(lambda self: self.claims)
    @rule(which=held)
    def refuse_twins(self, which: tuple[bool, int]) -> None:
        """Two children of one call cannot share a checkpoint."""
        twins = text([{"name": "$twin", "task": "a"}] * 2)

        def expect(_: Json) -> Json:
            raise Refused("22023")

        one = self.hold(which)
        self.play(
            lambda: self.engine.table("spawn_children", self.engine.queue, *one, twins),
            expect,
        )

    def has_ties(self) -> bool:
        """Whether it is open which of two comes first."""
        tasks = self.model.tasks.values()
        for field in ("lease", "deadline"):
            due = [at for task in tasks if (at := getattr(task, field)) is not None]
            if len(due) > len(set(due)):
                return True
        return False

    @rule(keep=st.sampled_from(["keep_tasks", "keep_events"]), span=st.none() | spans)
    def set_policy(self, keep: str, span: float | None) -> None:
        def expect(_: Json) -> bool:
            setattr(self.model, keep, micro(span))
            return False  # it was there

        policy = json.dumps({keep: span})
        self.play(
            lambda: self.engine.call("create_queue", self.engine.queue, policy), expect
        )


def as_json(held: Held, **more: Json) -> dict[str, Json]:
    return {"task_id": held[0], "claim": held[1], **more}


def asked(new: dict[str, Json]) -> dict[str, Json]:
    """Return its options as `spawn` takes them."""
    same = {"max_attempts", "retry", "max_delay", "max_duration"}
    named = {option: new[option] for option in same & new.keys()}
    if new.get("key") is not None:
        named["idempotency_key"] = new["key"]
    if new.get("parent") is not None:
        named["parent_task_id"] = new["parent"]
    return named


def created(told: Json) -> Iterator[str]:
    """Return the ids of the tasks that the engine says it has made."""
    rows = [] if isinstance(told, Refused) else told
    return iter([task_id for task_id, _, is_new in rows if is_new])


def asked_wait(wait: dict[str, Json]) -> dict[str, Json]:
    """Return a wait as `suspend_tasks` takes it."""
    said = {name: value for name, value in wait.items() if name != "span"}
    return said if "span" not in wait else said | {"seconds": wait["span"] / SECOND}


def by_name(rows: Iterable[tuple[Json, ...]]) -> list[tuple[Json, ...]]:
    """Return rows in an order of their own, without the ids of runs."""
    rows = list(rows)
    for *_, value in rows:
        if isinstance(value, dict):
            value.pop("run_id", None)
    return sorted(rows, key=lambda row: [str(cell) for cell in row[:3]])
