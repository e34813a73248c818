"""Play two calls against each other, and judge the state of their queue afterwards.

A scenario is played once, into a queue of its own. Each interleaving plays in a copy of
it: all state is keyed by queue, so ids and claims stay the same, and the clock stands
still. Afterwards deferred work is applied, and calls that skipped locked rows or were
told to retry are repeated, as a worker would do. Then

- the state and the answer of each call are those of one call after the other, in one of
  the two orders, at the same isolation levels; or of B alone, if A rolled back;
- every promise holds (tests/chaos/promises.py);
- no call failed with an error its caller need not expect, such as a deadlock, and no
  deferred work or lease was abandoned.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from random import Random
from types import TracebackType
from typing import Final

import psycopg

from tests.chaos.interleavings.calls import (
    FAR,
    Call,
    apply_deferred_work,
    create_queue,
    drop_queue,
    far,
)
from tests.chaos.interleavings.copies import STATE, make_copier
from tests.chaos.interleavings.crossings import CROSSINGS
from tests.chaos.interleavings.families import FAMILIES
from tests.chaos.interleavings.judging import Outcome, difference, is_legal, orders
from tests.chaos.interleavings.mail import MAIL
from tests.chaos.interleavings.pairs import (
    IN_READ_COMMITTED,
    LEVELS,
    Interleaving,
    Levels,
    Pair,
)
from tests.chaos.interleavings.points import instrument, stop_the_clock
from tests.chaos.interleavings.scenarios import SCENARIOS
from tests.chaos.interleavings.sessions import Session
from tests.chaos.interleavings.stage import HOUR, Scenario, Stage
from tests.chaos.interleavings.trees import TREES
from tests.chaos.promises import UNSEEN_WAIT, broken
from tests.support.claims import count_claims

__all__ = ["EVERY_SCENARIO", "Conductor"]

EVERY_SCENARIO: Final = (*SCENARIOS, *TREES, *FAMILIES, *MAIL, *CROSSINGS)

NOTES: Final = "select from durable.deferred_work where queue = %(queue)s limit 1"
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REFUSALS: Final = {None, "WFCAN", "WFCON", "WFFIN", "WFLST", "WFNFD", "WFQUE"}
AGAIN: Final = {"40001", "23505", "WFISO"}
ROUNDS: Final = 20
# A database accumulates thousands of queues, and each query concerns two of them.
LOOKUPS: Final = " ".join(
    f"-c {setting}"
    for setting in (
        "plan_cache_mode=force_generic_plan",
        "enable_seqscan=off",
        "enable_hashjoin=off",
        "enable_mergejoin=off",
        "jit=off",
        "synchronous_commit=off",
    )
)
APPLY_NOTES: Final = {"": apply_deferred_work, FAR: far(apply_deferred_work)}


class Conductor(contextlib.AbstractContextManager["Conductor"]):
    """Two sessions and an observer, in a database of their own."""

    def __init__(
        self,
        dsn: str,
        scenarios: Sequence[Scenario] = EVERY_SCENARIO,
        *,
        pointed: bool = True,
    ) -> None:
        self._sessions = contextlib.ExitStack()
        with contextlib.ExitStack() as begun:
            begun.callback(self._sessions.close)
            self._set_out(dsn, scenarios, pointed=pointed)
            begun.pop_all()

    def _set_out(
        self, dsn: str, scenarios: Sequence[Scenario], *, pointed: bool
    ) -> None:
        self.watch = psycopg.connect(dsn, autocommit=True, options=LOOKUPS)
        self._sessions.callback(self.watch.close)
        stop_the_clock(self.watch)
        count_claims(self.watch)
        if pointed:
            instrument(self.watch)
        make_copier(self.watch)
        self.a = self._session(dsn)
        self.b = self._session(dsn)
        self.house = self._session(dsn)
        self.nicks: dict[str, dict[str, str]] = {}
        self._places: dict[str, list[str]] = {}
        self.calls: dict[str, list[Call]] = {}
        self._points: dict[tuple[str, str], int] = {}
        self._parts: dict[Pair, set[Outcome]] = {}
        self._orders: dict[tuple[Pair, str, Levels, bool], Outcome] = {}
        self._numbers = itertools.count(1)
        for scenario in scenarios:
            self._set(scenario)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sessions.close()

    def _session(self, dsn: str) -> Session:
        session = Session(dsn, self.watch)
        self._sessions.callback(session.close)
        return session

    def _set(self, scenario: Scenario) -> None:
        """Play a scenario up to the meeting, and return the calls it offers."""
        name = scenario.__name__
        session = self.house.connection
        stage = Stage(session, name)
        self.calls[name] = list(scenario(stage))
        assert len({call.name for call in self.calls[name]}) == len(self.calls[name])
        self.nicks[name] = stage.nicks
        known = "select from durable.queues where queue = %s"
        has_far = session.execute(known, [f"{name}{FAR}"]).rowcount
        self._places[name] = ["", FAR] if has_far else [""]
        session.execute("select set_config('test.now', %s, false)", [str(HOUR)])

    def _copy(self, scenario: str) -> str:
        queue = f"{scenario}-{next(self._numbers)}"
        self.watch.execute("select public.copy_queue(%s, %s)", [scenario, queue])
        return queue

    # Interleavings to play

    def pairs(self) -> list[Pair]:
        """Return all ordered pairs of all scenarios."""
        return [
            Pair(scenario, a, b)
            for scenario, calls in self.calls.items()
            for a in calls
            for b in calls
        ]

    def points(self, scenario: str, call: Call) -> int:
        """Return how many points a call passes when it runs alone."""
        key = scenario, call.name
        if key not in self._points:
            self._points[key] = self.house.points(call, self._copy(scenario))
        return self._points[key]

    def stops(self, scenario: str, call: Call) -> range:
        """Return where to stop a call: at no point before its first statement."""
        return range(2, max(self.points(scenario, call), 1) + 2)

    def every_stop(self, pair: Pair) -> Iterator[Interleaving]:
        """Yield one interleaving for each place where A can be stopped."""
        for stop in self.stops(pair.scenario, pair.a):
            yield Interleaving(pair, stop)

    def some_stop(self, pair: Pair, random: Random) -> Interleaving:
        """Choose where A stops."""
        return Interleaving(pair, random.choice(self.stops(pair.scenario, pair.a)))

    def some_way(self, pair: Pair, random: Random) -> Interleaving:
        """Choose among all ways to play a pair."""
        return Interleaving(
            pair,
            random.choice(self.stops(pair.scenario, pair.a)),
            random.choice([0, *self.stops(pair.scenario, pair.b)]),
            random.choice(
                [IN_READ_COMMITTED, (random.choice(LEVELS), random.choice(LEVELS))]
            ),
            a_commits=random.random() < 0.7,
            b_stays=random.random() < 0.5,
        )

    # Playing

    def problem(self, way: Interleaving) -> str | None:
        """Play an interleaving; return what is wrong, or None."""
        queue = self._copy(way.pair.scenario)
        self._play(way, queue)
        told = (self.a.result if way.a_commits else "", self.b.result)
        stopped = [session.where for session in (self.a, self.b) if session.where]
        wrong = self._refused(way) or self._judged(way, queue, told)
        return f"{way} {stopped}; they said {told}: {wrong}" if wrong else None

    def _refused(self, way: Interleaving) -> str | None:
        """Look for errors that no caller should see."""
        expected = set(REFUSALS)
        if way.levels != IN_READ_COMMITTED:
            expected |= AGAIN
        if way.pair.a.inserts and way.pair.b.inserts:
            expected.add("23505")
        refusals = {self.a.refusal, self.b.refusal} - expected
        return f"refused with {refusals}" if refusals else None

    def _judged(
        self, way: Interleaving, queue: str, told: tuple[str, str]
    ) -> str | None:
        """Look for broken promises, and for outcomes that neither order explains."""
        outcome = self._rest(way.pair, queue, told, again=way.a_commits)
        wrong = [
            promise
            for where in self._places[way.pair.scenario]
            for promise in broken(self.watch, f"{queue}{where}")
        ]
        legal = self._legal(way)
        sessions = (self.a, self.b, self.house)
        warnings = [text for session in sessions for text in session.warnings]
        for session in sessions:
            session.warnings.clear()
        if way.levels == IN_READ_COMMITTED:
            wrong += warnings
        else:
            wrong = [promise for promise in wrong if promise != UNSEEN_WAIT]
        if wrong:
            return "; ".join(wrong)
        if is_legal(way, outcome, legal) or (
            way.a_commits and outcome in self._in_parts(way.pair)
        ):
            return None
        return f"in no order\n{difference(outcome, legal)}"

    def _play(self, way: Interleaving, queue: str) -> None:
        a, b = self.a, self.b
        a.begin(way.levels[0], way.stop_a)
        b.begin(way.levels[1], way.stop_b)
        a.start(way.pair.a, queue)
        a.rest(b)
        b.start(way.pair.b, queue)
        if b.rest(a) == "done" and not way.b_stays:
            b.end(commit=True)
        a.go_on()
        while a.state != "over":
            if a.rest(b) == "done":
                a.end(commit=way.a_commits)
            else:
                self._move(b, a)
        while b.state != "over":
            self._move(b, a)

    @staticmethod
    def _move(session: Session, other: Session) -> None:
        session.go_on()
        if session.state == "over":
            return
        if session.rest(other) == "done":
            session.end(commit=True)

    # Judging

    def _rest(
        self, pair: Pair, queue: str, told: tuple[str, str], *, again: bool
    ) -> Outcome:
        """Apply deferred work until nothing is left, and return the state.

        Calls to be retried are retried before other sessions do the remaining work.
        """
        said = list(told)
        calls = [(0, pair.a), (1, pair.b)] if again else [(1, pair.b)]
        for place, call in calls:
            if said[place] in AGAIN:
                said[place] = self.house.make(call, queue)
        self._apply_notes(pair.scenario, queue)
        for place, call in calls:
            if call.tries:
                self.house.make(call, queue)
                self._apply_notes(pair.scenario, queue)
                said[place] = ""
        for dropping, creating in (
            (drop_queue, create_queue),
            (far(drop_queue), far(create_queue)),
        ):
            if any(call.query == dropping.query for _, call in calls):
                said = []
                self.house.make(creating, queue)
        return self._state(pair.scenario, queue, said)

    def _apply_notes(self, scenario: str, queue: str) -> None:
        for _ in range(ROUNDS):
            left = [
                APPLY_NOTES[where]
                for where in self._places[scenario]
                if self.watch.execute(NOTES, {"queue": f"{queue}{where}"}).rowcount
            ]
            if not left:
                return
            for call in left:
                self.house.make(call, queue)

    def _state(self, scenario: str, queue: str, said: list[str]) -> Outcome:
        """Return all rows of a queue and the answers of the calls, by nicknames."""
        rows = [
            (kind, subject.replace(queue, ""), row.replace(queue, ""))
            for where in self._places[scenario]
            for kind, subject, row in self.watch.execute(
                STATE, {"queue": f"{queue}{where}"}
            )
        ]
        nicks = self.nicks[scenario]
        new = {
            task["task_id"]: f"new {task['name']}"
            for task in (json.loads(row) for kind, _, row in rows if kind == "task")
            if task["task_id"] not in nicks
        }
        named = nicks | new

        def nicknamed(text: str) -> str:
            return UUID.sub(lambda found: named.get(found[0], "…"), text)

        told = [
            (f"{who} said {nicknamed(line).split(' ')[0]}", nicknamed(line))
            for who, result in zip("AB", said, strict=False)
            for line in result.replace(queue, "").split("\n")
        ]
        facts = [
            (nicknamed(subject), f"{kind} {nicknamed(row)}")
            for kind, subject, row in rows
        ]
        return tuple(sorted(told + facts))

    def in_order(self, pair: Pair) -> Outcome:
        """Return the outcome of A and then B, without concurrency."""
        return self._in_order(pair, "ab", IN_READ_COMMITTED, again=True)

    def _legal(self, way: Interleaving) -> list[Outcome]:
        """Return the outcomes legal at these isolation levels or in READ COMMITTED."""
        return [
            self._in_order(way.pair, order, levels, again=way.a_commits)
            for levels in {way.levels, IN_READ_COMMITTED}
            for order in orders(way)
        ]

    def _in_parts(self, pair: Pair) -> set[Outcome]:
        """Return the outcomes of a sweep that handles some tasks before the other call.

        It is one call per task: the other call may run between any two of these.
        """
        if pair not in self._parts:
            self._parts[pair] = {
                self._in_part(pair, sweep, some)
                for sweep in (pair.a, pair.b)
                if sweep.sweeps
                for some in _some(list(self.nicks[pair.scenario]))
            }
        return self._parts[pair]

    def _in_part(self, pair: Pair, sweep: Call, some: tuple[str, ...]) -> Outcome:
        queue = self._copy(pair.scenario)
        self.house.make(sweep.of(some), queue)
        told = [
            "" if call is sweep else self.house.make(call, queue)
            for call in (pair.a, pair.b)
        ]
        return self._rest(pair, queue, (told[0], told[1]), again=True)

    def _in_order(
        self, pair: Pair, order: str, levels: Levels, *, again: bool
    ) -> Outcome:
        key = pair, order, levels, again
        if key not in self._orders:
            queue = self._copy(pair.scenario)
            told = {"a": "", "b": ""}
            for who in order:
                call = pair.a if who == "a" else pair.b
                level = levels["ab".index(who)]
                told[who] = self.house.make(call, queue, level)
            said = told["a"], told["b"]
            self._orders[key] = self._rest(pair, queue, said, again=again)
        return self._orders[key]


def _some(tasks: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield all choices of them, except none and all."""
    for size in range(1, len(tasks)):
        yield from itertools.combinations(tasks, size)
