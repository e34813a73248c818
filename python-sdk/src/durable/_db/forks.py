"""Reset of state in forked children.

A child cannot use its copies of connections, pools and locks: the socket is shared with
the parent, and the thread that holds the lock does not exist in the child.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

_methods: set[weakref.WeakMethod[Callable[[], Any]]] = set()
_is_fork_of_worker = False


def call_in_forks(method: Callable[[], Any]) -> None:
    """Call a bound method in each forked child, while its object exists."""
    _methods.add(weakref.WeakMethod(method, _methods.discard))


def _call_all() -> None:
    for reference in list(_methods):
        if (method := reference()) is not None:
            method()


def mark_fork_of_worker() -> None:
    """Record, in a forked child, that it is a copy of a process with a worker."""
    global _is_fork_of_worker  # noqa: PLW0603 - of the process
    _is_fork_of_worker = True


def end_fork_of_worker(error: SystemExit) -> None:
    """Exit as `error` would, if this process is a child that a step has forked."""
    if _is_fork_of_worker:
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)  # noqa: T201 - as Python does
            code = 1
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code or 0)


os.register_at_fork(after_in_child=_call_all)
