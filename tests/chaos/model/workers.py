# ruff: noqa: FBT001 - what a rule is given is drawn, and given by name
"""Calls of workers in a program."""

from __future__ import annotations

import itertools
import json

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.chaos.model.drawing import (
    ERROR,
    WORKERS,
    Held,
    Json,
    as_json,
    asked,
    asked_wait,
    by_name,
    created,
    event,
    few,
    held,
    helds,
    options,
    payload,
    rarely,
    spans,
    wait,
)
from tests.chaos.model.engine import text
from tests.chaos.model.playing import Player
from tests.chaos.model.things import SECOND, Refused, iso, micro

__all__ = ["Workers"]


class Workers(Player):
    """Workers that claim tasks, and write for them."""

    @rule(
        worker=st.sampled_from(WORKERS),
        names=st.sampled_from([None, None, None, ["a"], ["b", "nobody"]]),
        batch_size=st.sampled_from([0, 1, 1, 2, 2, 5, 5, 5]),
        lease=st.sampled_from([1, 30, 30, 600]),
        load=st.booleans(),
    )
    def claim(
        self,
        worker: str,
        names: list[str] | None,
        batch_size: int,
        lease: int,
        load: bool,
    ) -> None:
        columns = "task_id, claim, name, attempt, params, parent_task_id,"
        columns += " public.us(expires_at), public.us(available_at)"
        taken: list[Held] = []

        def ask() -> Json:
            arguments = self.engine.queue, worker, names, batch_size, lease
            return sorted(self.engine.table("claim_tasks", *arguments, columns=columns))

        def expect(_: Json) -> Json:
            claimed = self.model.claim(worker, names, batch_size, lease * SECOND)
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
        """Return the latest of several claims on the same task."""
        return list(dict(self.holds(which)).items())

    def wait(self, place: int, given: dict[str, Json]) -> dict[str, Json]:
        """Draw a wait, and the name of its checkpoint."""
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
        """Repeat a call whose answer was lost, or that arrived late."""
        self.tick()
        self.said[-1 - number % len(self.said)]()
