# ruff: noqa: FBT001 - what a rule is given is drawn, and given by name
"""Programs of clients, workers and maintenance, played to the engine and the model.

After each step both must have given the same answer, and hold the same.
"""

from __future__ import annotations

import json

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.chaos.model.drawing import (
    DAY,
    Json,
    as_json,
    asked,
    batch_size,
    created,
    event,
    few,
    held,
    options,
    payload,
    rarely,
    spans,
)
from tests.chaos.model.engine import text
from tests.chaos.model.looking import (
    REFUSED,
    REFUSED_OF_TASKS,
    expected_looks,
    looks,
)
from tests.chaos.model.things import SECOND, Refused, micro
from tests.chaos.model.workers import Workers

__all__ = ["Machine"]


class Machine(Workers):
    """A queue of its own, used by all kinds of callers in turn."""

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
        number=few,
        most=st.sampled_from([None, None, 1, 3]),
        new=rarely,
        worst=rarely,
        old=rarely,
    )
    def retry(
        self, number: int, most: int | None, new: bool, worst: bool, old: bool
    ) -> None:
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
            old=old,
        )

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
            ["expire_leases", "expire_tasks", "cleanup", "prune_events"]
        ),
        batch_size=batch_size,
        old=rarely,
    )
    def keep(self, what: str, batch_size: int, old: bool) -> None:
        self.tick()
        old = old and what.startswith("expire")
        if self.has_ties():
            batch_size = 100
        self.play(
            lambda: self.engine.call(what, self.engine.queue, batch_size),
            lambda _: getattr(self.model, what)(batch_size),
            old=old,
        )

    @rule(old=rarely)
    def apply_deferred_work(self, old: bool) -> None:
        self.tick()
        order = self.engine.look().deferred
        self.play(
            lambda: self.engine.call("apply_deferred_work", self.engine.queue),
            lambda _: self.model.apply_deferred_work(order),
            old=old,
        )

    @rule()
    def run_maintenance(self) -> None:
        self.tick()
        order = self.engine.look().deferred

        def expect(_: Json) -> Json:
            return [
                (
                    self.model.expire_leases(100),
                    self.model.expire_tasks(1000),
                    self.model.apply_deferred_work(order),
                    0,  # ticks of schedules
                    self.model.cleanup(1000),
                    self.model.prune_events(1000),
                )
            ]

        self.play(
            lambda: self.engine.table("run_maintenance", self.engine.queue), expect
        )

    @rule(numbers=st.lists(few, max_size=3))
    def look(self, numbers: list[int]) -> None:
        """Compare statistics, views and results."""
        ids = list(dict.fromkeys(map(self.id, numbers)))
        self.play(
            lambda: looks(self.engine, ids),
            lambda _: expected_looks(self.model, ids),
        )

    @rule(wrong=st.sampled_from(REFUSED))
    def refuse(self, wrong: tuple[str, str, list[Json]]) -> None:
        """A refused call changes nothing."""
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
            return False  # it existed

        policy = json.dumps({keep: span})
        self.play(
            lambda: self.engine.call("create_queue", self.engine.queue, policy), expect
        )
