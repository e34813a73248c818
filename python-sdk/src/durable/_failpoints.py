"""Takes note of every boundary of a database call, and dies or stops where it is told.

    DURABLE_FAILPOINT=record=/tmp/passed                  a line for each one passed
    DURABLE_FAILPOINT=kill=flush#3:sent                   SIGKILL, at this one
    DURABLE_FAILPOINT="record=/tmp/passed;stop=flush#3:sent"      SIGSTOP, at this one

A boundary is `<function>#<nth call of it in this process>:<phase>`:

    before      nothing has been sent
    sent        all was sent, and no reply has been read; sent2, sent3 where a call says
                several things, as one that begins a transaction or prepares itself
    after       the reply was read, be it an error; whoever asked does not know yet

It is for tests, which so find out what a crash at any of them does. Where the variable
is not set when `durable` is imported, psycopg stays as it is and this is not imported.
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

# What runs until a connection has said what it had to say, and has heard the answer.
Conversation = Generator[Any, Any, Any]

# Given a connection, what is called on it and with what, returns who is to be told of
# each phase of that call; None if nobody is.
Follow: TypeAlias = Callable[[Any, str, Sequence[Any]], Callable[[str], None] | None]


class _Failpoints:
    """What to do at which boundary, and how many calls there have been."""

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
        """Return what is to be told of each phase of a call that begins."""
        call = f"{function}#{next(self._calls[function])}"
        also = self.follow(connection, function, args)

        def passes(phase: str) -> None:
            self.reach(f"{call}:{phase}")
            if also is not None:
                also(phase)

        return passes

    def kill_at(self, points: Iterable[str]) -> None:
        """Die at these, too."""
        self._signals |= dict.fromkeys(points, signal.SIGKILL)

    def reach(self, point: str) -> None:
        """Do what is to be done here. A kill ends it: no code runs after this."""
        if self._record is not None:
            os.write(self._record, f"{point}\n".encode())
        if point in self._signals:
            os.kill(os.getpid(), self._signals[point])


_armed: _Failpoints | None = None


def arm(orders: str) -> None:
    """Do from now on what the variable would say, in this process; once."""
    global _armed  # noqa: PLW0603 - a process has one
    if _armed is not None:
        raise RuntimeError("the failpoints of this process are armed")
    _armed = _Failpoints(orders)
    for kind in (AsyncConnection, Connection):
        _watch_statements(kind, _armed)
        _watch_connecting(kind, _armed)


def follow(by: Follow, kill_at: Iterable[str] = ()) -> None:
    """Let somebody know of all calls, who may `reach` boundaries of better names.

    The failpoints must be armed. It dies at these boundaries, whatever their names.
    """
    if _armed is None:
        raise RuntimeError("the failpoints of this process are not armed")
    _armed.follow = by
    _armed.kill_at(kill_at)


def reach(point: str) -> None:
    """Pass a boundary of the caller's own, that goes by this name."""
    if _armed is not None:
        _armed.reach(point)


def _watch_statements(kind: Any, points: _Failpoints) -> None:
    """Watch all that connections of this kind, and of its heirs, say to a server."""
    wait: Callable[..., Any] = kind.wait

    def watched(self: Any, said: Conversation, *args: Any, **kwargs: Any) -> Any:
        call = points.begin(self, *_said(said))
        return wait(self, _watched(said, call), *args, **kwargs)

    kind.wait = watched


def _watch_connecting(kind: Any, points: _Failpoints) -> None:
    connect = kind._connect_gen.__func__  # noqa: SLF001 - there is no other place

    def watched(cls: Any, *args: Any, **kwargs: Any) -> Conversation:
        call = points.begin(None, "connect", ())
        return _watched(connect(cls, *args, **kwargs), call, most=1)

    kind._connect_gen = classmethod(watched)  # noqa: SLF001 - as above


def _watched(
    said: Conversation, passes: Callable[[str], None], most: int | None = None
) -> Conversation:
    """Pass on what psycopg waits for: to read only means that all was sent."""
    passes("before")
    times, ready = 0, True  # not ready is asked again
    try:
        wanted = next(said)
        while True:
            waits_for = wanted[1] if isinstance(wanted, tuple) else wanted
            if waits_for == Wait.R and ready and times != most:
                times += 1
                passes(f"sent{times if times > 1 else ''}")
            answer = yield wanted
            ready = bool(answer)
            wanted = said.send(answer)
    except StopIteration as end:
        passes("after")
        return end.value
    except Error:
        passes("after")
        raise


def _said(said: Conversation) -> tuple[str, Sequence[Any]]:
    """Return which function of the engine is called, and with what.

    Of any other statement, what it does.
    """
    given = getattr(getattr(said, "gi_frame", None), "f_locals", {})
    if "gen" in given:  # somebody of ours passes on what is said
        return _said(given["gen"])
    query = given.get("query", given.get("command"))
    text = query.decode() if isinstance(query, bytes) else str(query or "")
    args = given.get("params")
    args = args if isinstance(args, list | tuple) else ()
    if found := _ENGINE.search(text):
        return found[1], args
    if word := _WORD.search(text):
        return word[0].lower(), args
    name = str(getattr(said, "__name__", ""))
    return name.strip("_").removesuffix("_gen"), args
