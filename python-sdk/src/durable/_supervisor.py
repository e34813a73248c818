"""Run and supervise several worker processes of one application.

Each process is a fresh interpreter that imports the application: an app cannot be
pickled, and connections do not survive a fork. A process that ends is replaced, with
backoff if it ended soon after its start.

A socket connects the supervisor with each process. To stop the process, the supervisor
closes its end, as happens when the supervisor dies. A process that cannot work at all
sends its error through the socket.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from typing import Any, Final, Unpack

from durable import errors
from durable._client._async.client import AsyncDurable
from durable._client._sync.client import Durable
from durable._db.application import Application, application_of
from durable._worker.hosting import run_until_signalled
from durable._worker.options import Settings, WorkerOptions, settings_of, worker_of
from durable._worker.signals import stop_signals
from durable.errors import DatabaseUnavailable, DurableError, InvalidArgument
from durable.telemetry.logs import JSONFormatter

__all__ = ["configure_logging", "load_app", "run_worker"]

logger = logging.getLogger("durable.worker")

_STABLE_SECONDS: Final = 10.0  # a process that ran so long is restarted at once
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_POLL_SECONDS: Final = 0.05
_LONGEST_MESSAGE: Final = 65_536
# added to the shutdown timeout, to end code, release tasks and close connections
_EXIT_SECONDS: Final = 30.0
# not `-m`, which would run a second copy of this module
_WORK: Final = "from durable._supervisor import work_alone; work_alone()"
_LOG_FORMAT: Final = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


def run_worker(
    app: str,
    *,
    processes: int = 1,
    health: str | None = None,
    **options: Unpack[WorkerOptions],
) -> None:
    """Run workers of an application, given as "module:name", until a stop signal.

    That is SIGTERM, SIGINT or SIGHUP; a second SIGTERM or SIGINT exits at once. With
    several processes, this one supervises them. `health` is "HOST:PORT", where it
    answers `/healthz`, `/readyz` and `/metrics`; further processes take the ports that
    follow. Raises InvalidArgument if there is no
    such app, and permanent errors: SchemaVersion, UnknownQueue, Forbidden, and
    DatabaseUnavailable if the server rejects the database, the role or the password.
    """
    if type(processes) is not int or processes < 1:
        raise InvalidArgument("processes must be an int of at least 1")
    application = application_of(load_app(app))
    address = None
    if health is not None:
        from durable.telemetry.serving import address_of  # noqa: PLC0415 - seldom used

        address = address_of(health)
    if processes > 1:
        settings = settings_of(application, options)
        _Supervisor(app, processes, settings, address).run()
    else:
        _run_one(application, options, address)


def _run_one(
    application: Application,
    options: WorkerOptions,
    address: tuple[str, int] | None,
    gone: Future[None] | None = None,
) -> None:
    """Run the worker of this process, with its health endpoint."""
    if address is None:
        run_until_signalled(worker_of(application, options), gone)
        return
    from durable.telemetry.health import health_server, measured  # noqa: PLC0415

    registry = measured(application)  # before the worker takes the middleware
    worker = worker_of(application, options)
    run_until_signalled(worker, gone, health_server(worker, registry, *address))


def load_app(app: str) -> AsyncDurable | Durable:
    """Import and return the app of "module:name", or raise InvalidArgument."""
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


def configure_logging(level: int | None, log_format: str | None = None) -> None:
    """Log to stderr from this level on, INFO by default.

    If the application has configured logging, its handlers stay, and only what is given
    is changed. The format "json" makes each record a line of JSON.
    """
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    root = logging.getLogger()
    if level is not None:
        root.setLevel(level)
    if log_format == "json":
        for handler in root.handlers:
            handler.setFormatter(JSONFormatter())


def _log_format() -> str | None:
    """Return the format of this process, for those that it starts."""
    handlers = logging.getLogger().handlers
    is_json = any(isinstance(one.formatter, JSONFormatter) for one in handlers)
    return "json" if is_json else None


class _Supervisor:
    """Keeps a number of processes running until a stop signal."""

    def __init__(
        self,
        app: str,
        processes: int,
        settings: Settings,
        address: tuple[str, int] | None = None,
    ) -> None:
        root = logging.getLogger()
        order: dict[str, Any] = {
            "app": app,
            "options": settings._asdict(),
            "path": sys.path,
            "level": root.level if root.handlers else None,
            "log_format": _log_format(),
            "health": None,
        }
        self._children = []
        for number in range(processes):
            if address is not None:
                host, port = address
                order["health"] = host, port and port + number
            self._children.append(_Child(json.dumps(order)))
        self._stopping = threading.Event()
        self._ended_by: int | None = None

    def run(self) -> None:
        """Supervise the processes; return when all have stopped."""
        with stop_signals(self._stopping.set, self._end_now):
            try:
                while not self._stopping.is_set():
                    for child in self._children:
                        child.tend()
                    time.sleep(_POLL_SECONDS)
            finally:
                self._stop_all()

    def _end_now(self, number: int) -> None:
        self._ended_by = number

    def _stop_all(self) -> None:
        logger.info("stopping %d worker processes", len(self._children))
        for child in self._children:
            child.stop()
        while any(child.is_alive() for child in self._children):
            if self._ended_by is not None:
                for child in self._children:
                    child.kill()
            time.sleep(_POLL_SECONDS)
        if self._ended_by is not None:
            os._exit(128 + self._ended_by)


class _Child:
    """One of the processes. `tend` starts it, and restarts it when it has ended."""

    def __init__(self, order: str) -> None:
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._started = 0.0
        self._due = 0.0
        self._deaths = 0  # in a row, each soon after the start

    def tend(self) -> None:
        """Start the process if it is due; raise the permanent error it reported."""
        if self._process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif not self.is_alive():
            self._raise_reported_error()
            self._schedule_start(_exit_text(self._process))

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ask the process to stop gracefully."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the process has ended
                # unlike close, it takes effect even if a fork has a copy of the socket
                self._socket.shutdown(socket.SHUT_WR)
            self._socket.close()

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        if self._process is not None:
            self._process.kill()

    def _start(self) -> None:
        ours, its = socket.socketpair()
        command = [sys.executable, "-c", _WORK, self._order, str(its.fileno())]
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - its own interpreter
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,  # Ctrl-C goes to the supervisor only
            )
        except OSError as error:
            ours.close()
            self._schedule_start(f"a worker process could not be started: {error}")
        else:
            self._socket = ours
        finally:
            its.close()

    def _schedule_start(self, why: str) -> None:
        """Schedule the next start: at once, or with backoff after an early end."""
        lived = time.monotonic() - self._started
        self._deaths = 0 if lived > _STABLE_SECONDS else self._deaths + 1
        pause = 0.0
        if self._deaths:
            pause = min(_FIRST_PAUSE * 2.0 ** min(self._deaths - 1, 10), _LONGEST_PAUSE)
        self.stop()
        self._process = self._socket = None
        self._due = time.monotonic() + pause
        logger.warning("%s; the next one starts in %g s", why, pause)

    def _raise_reported_error(self) -> None:
        if self._socket is None:
            return
        self._socket.setblocking(False)  # noqa: FBT003 - as it is called
        with contextlib.suppress(OSError):
            if message := self._socket.recv(_LONGEST_MESSAGE):
                raise _decode_error(message)


def _exit_text(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    how = f"with exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):  # a real-time signal
            how = f"by {signal.Signals(-code).name}"
    return f"worker process {process.pid} has ended {how}"


# -- in a child ------------------------------------------------------------------------


def work_alone() -> None:
    """Run one of several processes, as the arguments of the command line say."""
    order = json.loads(sys.argv[1])
    supervisor = socket.socket(fileno=int(sys.argv[2]))
    supervisor.set_inheritable(False)
    gone: Future[None] = Future()
    patience = order["options"]["shutdown_timeout"] + _EXIT_SECONDS
    threading.Thread(
        target=_stop_with_supervisor, args=(supervisor, gone, patience), daemon=True
    ).start()
    sys.path[:] = order["path"]
    try:
        found = _loaded(order["app"])
        configure_logging(order["level"], order["log_format"])
        gone.set_running_or_notify_cancel()
        _run_one(application_of(found), order["options"], order["health"], gone)
    except DurableError as error:
        if isinstance(error, DatabaseUnavailable) and error.sqlstate is None:
            raise  # it may be temporary
        supervisor.send(_encode_error(error))
        sys.exit(1)


def _loaded(app: str) -> AsyncDurable | Durable:
    """Load the app; a failure is permanent, since the supervisor could load it."""
    try:
        return load_app(app)
    except DurableError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise InvalidArgument(f"{app!r} cannot be imported: {error!r}") from error


def _stop_with_supervisor(
    supervisor: socket.socket, gone: Future[None], patience: float
) -> None:
    """Stop when the supervisor closes its end of the socket, or dies.

    After `patience` seconds the process exits, even if code blocks the event loop.
    """
    supervisor.recv(1)
    if not gone.running():  # the worker has not started
        os._exit(0)
    gone.set_result(None)
    time.sleep(min(patience, threading.TIMEOUT_MAX))
    logger.error("the worker could not be stopped in %g s: it is ended", patience)
    os._exit(1)


def _encode_error(error: DurableError) -> bytes:
    fields = {
        "type": type(error).__name__,
        "message": str(error.args[0] if error.args else error),
        "hint": error.hint,
        "sqlstate": getattr(error, "sqlstate", None),
    }
    return json.dumps(fields).encode()[:_LONGEST_MESSAGE]


def _decode_error(message: bytes) -> DurableError:
    fields = json.loads(message)
    kind = getattr(errors, fields["type"], DurableError)
    error: DurableError = kind(fields["message"], hint=fields["hint"])
    if fields["sqlstate"] is not None:
        error.sqlstate = fields["sqlstate"]  # type: ignore[attr-defined]
    return error
