"""Several worker processes of one application.

Each is a fresh interpreter that imports the application: an app cannot be sent to
another process, and connections do not survive a fork. One that dies is replaced.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Unpack

from durable._async.client import AsyncDurable
from durable._sync.client import Durable
from durable._worker.hosting import run_until_signalled
from durable._worker.options import WorkerOptions, worker_of
from durable.errors import DurableError, InvalidArgument

__all__ = ["load_app", "run_worker"]

logger = logging.getLogger("durable.worker")

_SOONEST_SECONDS: Final = 5.0  # long enough for a slow import of the application
# not `-m`, which would run a second copy of this module
_WORK: Final = "from durable._supervisor import work_alone; work_alone()"


def run_worker(
    app: str, *, processes: int = 1, **options: Unpack[WorkerOptions]
) -> None:
    """Work for an application, given as "module:name", until SIGTERM or SIGINT.

    With several processes, this one watches over them. Raises InvalidArgument if there
    is no such app, and what no time heals: SchemaVersion, UnknownQueue.
    """
    if type(processes) is not int or processes < 1:
        raise InvalidArgument("processes must be an int of at least 1")
    found = load_app(app)
    if processes > 1:
        _supervise(app, processes, options)
    else:
        run_until_signalled(worker_of(found.application, options))


def load_app(app: str) -> AsyncDurable | Durable:
    """Return the app that "module:name" stands for, or raise InvalidArgument."""
    module, colon, name = app.partition(":")
    if not (module and colon and name):
        raise InvalidArgument(f"{app!r} is not of the form module:name")
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - as python -m does
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"there is no app {app!r}: {error}") from error
    if not isinstance(found, AsyncDurable | Durable):
        raise InvalidArgument(
            f"{app!r} is a {type(found).__name__}, not an AsyncDurable or a Durable"
        )
    return found


def _supervise(app: str, processes: int, options: Mapping[str, Any]) -> None:
    """Keep so many processes running until a signal, then pass it on."""
    stopping: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, _: stopping.append(received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    children = {_start(app, options): time.monotonic() for _ in range(processes)}
    try:
        while not stopping:
            for child, started in list(children.items()):
                if child.poll() is not None:
                    del children[child]
                    child.communicate()
                    _refuse_hopeless(child, started)
                    children[_start(app, options)] = time.monotonic()
            time.sleep(0.1)
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.communicate()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(app: str, options: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    plain = {
        key: value.total_seconds() if isinstance(value, timedelta) else value
        for key, value in options.items()
    }
    command = [sys.executable, "-c", _WORK, app, json.dumps(plain)]
    return subprocess.Popen(  # noqa: S603 - its own interpreter
        command, stdin=subprocess.PIPE, start_new_session=True
    )


def _refuse_hopeless(child: subprocess.Popen[bytes], started: float) -> None:
    """Give up on a process that ends as soon as it starts: the next one would too."""
    logger.warning("worker process %s ended with %s", child.pid, child.returncode)
    if child.returncode > 0 and time.monotonic() - started < _SOONEST_SECONDS:
        raise SystemExit(child.returncode)


def work_alone() -> None:
    """Be one of several processes; the arguments are those of the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    try:
        run_worker(sys.argv[1], **json.loads(sys.argv[2]))
    except DurableError as error:
        sys.exit(f"durable: {error}")


def _end_with_the_supervisor() -> None:
    """Stop as on SIGTERM when the pipe to the supervisor breaks, whatever killed it."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
