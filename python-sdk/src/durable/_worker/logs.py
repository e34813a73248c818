"""What a task logs, kept with the task.

`ctx.logger` is a logger of the run's own. What it lets through is kept, and goes on to
wherever the process logs, if it is of interest there. While the run replays what is
recorded it lets nothing through. With `keep_logs`, what any logger says while a task's
code runs is kept as well.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING, Final

from durable._vault import Vault
from durable._worker.executing import current_run, inside_a_step
from durable._worker.publishing import Line

if TYPE_CHECKING:
    from durable._worker.run import Run

__all__ = ["TaskLogger", "kept_logs"]

_LONGEST: Final = 8_000
_LONGEST_STORED: Final = 20_000  # what the engine keeps whole, which sealed it must be
_LONGEST_IF_LONGER: Final = 2_000
_OURS: Final = ("durable.worker", "durable.client")  # not about the task
_KEPT: Final = "durable_kept"
_text: Final = logging.Formatter()


class TaskLogger(logging.Logger):
    """The logger of one run; its records carry the ids of the task."""

    def __init__(self, run: Run) -> None:
        super().__init__("durable.task")
        self._run = run
        self._outside = logging.getLogger(self.name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - of logging
        """Whether the line would be kept, or printed; never while the run replays."""
        wanted = level >= self._run.services.application.logs_from
        return not self._run.replays and (wanted or self._outside.isEnabledFor(level))

    def getEffectiveLevel(self) -> int:  # noqa: N802 - of logging
        """Return the level from which on lines are kept."""
        return self._run.services.application.logs_from

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Keep the line, and pass it on."""
        for name, value in self._run.ids.items():
            setattr(record, name, value)
        if record.levelno >= self._run.services.application.logs_from:
            keep(self._run, record)
        record.__dict__[_KEPT] = True
        if self._outside.isEnabledFor(record.levelno):
            self._outside.callHandlers(record)


class _Keeper(logging.Handler):
    """Keeps what is logged while a task's code runs."""

    def emit(self, record: logging.LogRecord) -> None:
        run = current_run.get()
        if run is None or _KEPT in record.__dict__ or record.name.startswith(_OURS):
            return
        record.__dict__[_KEPT] = True  # a process may have several workers
        level = run.services.application.logs_from
        if record.levelno >= level and not run.replays:
            keep(run, record)


def keep(run: Run, record: logging.LogRecord) -> None:
    """Keep a line with its task, unless the run has ended; from any thread."""
    if run.has_ended:
        return
    execution = inside_a_step.get()
    line = Line(
        run.database_now().astimezone(UTC).isoformat(),
        record.levelno,
        record.name,
        None if execution is None else execution.step,
        sealed_line(run.services.application.vault, _text.format(record)),
    )
    run.publishing().hand_in("log", line)


def sealed_line(vault: Vault, message: str) -> str:
    """Return a line as it is to be stored, so short that it is kept as a whole."""
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    text = message.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
    sealed = vault.sealed_text(text)
    if len(sealed) > _LONGEST_STORED:
        sealed = vault.sealed_text(f"{text[:_LONGEST_IF_LONGER]}…")
    return sealed


@contextlib.contextmanager
def kept_logs(level: int | None) -> Iterator[None]:
    """Keep what any logger says in a task, from this level on; None: nothing."""
    if level is None:
        yield
        return
    keeper = _Keeper(level)
    root = logging.getLogger()
    root.addHandler(keeper)
    try:
        yield
    finally:
        root.removeHandler(keeper)
