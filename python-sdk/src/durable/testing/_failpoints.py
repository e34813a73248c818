"""Failpoints at every boundary of a database call, for crash tests.

    DURABLE_FAILPOINT=record=/tmp/passed                  write a line for each one
    DURABLE_FAILPOINT=kill=flush#3:sent                   send SIGKILL at this one
    DURABLE_FAILPOINT="record=/tmp/passed;stop=flush#3:sent"      send SIGSTOP there

A boundary is `<function>#<nth call of it in this process>:<phase>`:

    before      nothing has been sent
    sent        all was sent, and no reply has been read; sent2, sent3 where a call has
                several round trips, to begin a transaction or prepare a statement
    after       the reply or error was read; the caller does not have it yet

Unless the variable is set when `durable` is imported, psycopg is not patched and this
module is not imported.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, TypeAlias

from psycopg import AsyncConnection, Connection, Error
from psycopg.waiting import Wait

__all__ = ["VARIABLE", "Follow", "arm", "follow", "reach"]

VARIABLE: Final = "DURABLE_FAILPOINT"

_ENGINE: Final = re.compile(r"\bdurable\.(\w+)\(")
_WORD: Final = re.compile(r"\w+")
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

# psycopg's generator for one exchange: it sends, waits for the socket and reads.
Exchange = Generator[Any, Any, Any]

# Called with a connection, the engine function it calls and the arguments; returns a
# callback for the phases of that call, or None.
Follow: TypeAlias = Callable[[Any, str, Sequence[Any]], Callable[[str], None] | None]


class _Failpoints:
    """The actions at boundaries, and the count of calls per function."""

    def __init__(self, orders: str) -> None:
        self.follow: Follow = lambda *_: None
        self._record: int | None = None
        self._signals: dict[str, signal.Signals] = {}
        self._calls: defaultdict[str, Any] = defaultdict(lambda: itertools.count(1))
        for order in filter(None, orders.split(";")):
            what, _, argument = order.partition("=")
            if what == "record":
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._record = os.open(argument, flags, 0o600)
            elif what in _SIGNALS and argument:
                self._signals[argument] = _SIGNALS[what]
            else:
                raise ValueError(f"{VARIABLE} does not know {order!r}")

    def begin(
        self, connection: Any, function: str, args: Sequence[Any]
    ) -> Callable[[str], None]:
        """Count a call, and return the callback for its phases."""
        call = f"{function}#{next(self._calls[function])}"
        follower = self.follow(connection, function, args)

        def on_phase(phase: str) -> None:
            self.reach(f"{call}:{phase}")
            if follower is not None:
                follower(phase)

        return on_phase

    def kill_at(self, points: Iterable[str]) -> None:
        """Send SIGKILL at these boundaries, too."""
        self._signals |= dict.fromkeys(points, signal.SIGKILL)

    def reach(self, point: str) -> None:
        """Record this boundary and send its signal. No code runs after a SIGKILL."""
        if self._record is not None:
            os.write(self._record, f"{point}\n".encode())
        if point in self._signals:
            os.kill(os.getpid(), self._signals[point])


_armed: _Failpoints | None = None


def arm(orders: str) -> None:
    """Patch psycopg in this process, with the variable's syntax; only once."""
    global _armed  # noqa: PLW0603 - a process has one
    if _armed is not None:
        raise RuntimeError("the failpoints of this process are armed")
    _armed = _Failpoints(orders)
    for kind in (AsyncConnection, Connection):
        _patch_wait(kind, _armed)
        _patch_connect(kind, _armed)


def follow(by: Follow, kill_at: Iterable[str] = ()) -> None:
    """Report all calls to `by`, which may `reach` boundaries with names of its own.

    The failpoints must be armed. `kill_at` adds boundaries at which to send SIGKILL.
    """
    if _armed is None:
        raise RuntimeError("the failpoints of this process are not armed")
    _armed.follow = by
    _armed.kill_at(kill_at)


def reach(point: str) -> None:
    """Pass a boundary that the caller has named."""
    if _armed is not None:
        _armed.reach(point)


def _patch_wait(kind: Any, points: _Failpoints) -> None:
    """Patch `wait` of a connection class, which serves its subclasses, too."""
    wait: Callable[..., Any] = kind.wait

    def patched(self: Any, exchange: Exchange, *args: Any, **kwargs: Any) -> Any:
        on_phase = points.begin(self, *_call_of(exchange))
        return wait(self, _traced(exchange, on_phase), *args, **kwargs)

    kind.wait = patched


def _patch_connect(kind: Any, points: _Failpoints) -> None:
    connect = kind._connect_gen.__func__  # noqa: SLF001 - there is no public hook

    def patched(cls: Any, *args: Any, **kwargs: Any) -> Exchange:
        on_phase = points.begin(None, "connect", ())
        return _traced(connect(cls, *args, **kwargs), on_phase, max_sent=1)

    kind._connect_gen = classmethod(patched)  # noqa: SLF001 - as above


def _traced(
    exchange: Exchange, on_phase: Callable[[str], None], max_sent: int | None = None
) -> Exchange:
    """Run an exchange and report its phases: once it only reads, all was sent."""
    on_phase("before")
    sent, ready = 0, True  # psycopg waits again if the socket was not ready
    try:
        wanted = next(exchange)
        while True:
            waits_for = wanted[1] if isinstance(wanted, tuple) else wanted
            if waits_for == Wait.R and ready and sent != max_sent:
                sent += 1
                on_phase(f"sent{sent if sent > 1 else ''}")
            answer = yield wanted
            ready = bool(answer)
            wanted = exchange.send(answer)
    except StopIteration as end:
        on_phase("after")
        return end.value
    except Error:
        on_phase("after")
        raise


def _call_of(exchange: Exchange) -> tuple[str, Sequence[Any]]:
    """Return the engine function that is called, and its arguments.

    For any other statement, its first word.
    """
    given = getattr(getattr(exchange, "gi_frame", None), "f_locals", {})
    if "gen" in given:  # a generator of ours that wraps psycopg's
        return _call_of(given["gen"])
    query = given.get("query", given.get("command"))
    text = query.decode() if isinstance(query, bytes) else str(query or "")
    args = given.get("params")
    args = args if isinstance(args, list | tuple) else ()
    if found := _ENGINE.search(text):
        return found[1], args
    if word := _WORD.search(text):
        return word[0].lower(), args
    name = str(getattr(exchange, "__name__", ""))
    return name.strip("_").removesuffix("_gen"), args
