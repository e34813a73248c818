"""A real job, killed halfway with `kill -9`, and the proof that it went on.

    durable demo

A census of this Python's own standard library. `census.py` has the tasks, and is
the file to read first; `story.py` is what happens to them, `proof.py` what is checked.
"""

from __future__ import annotations

import signal
import sys
import sysconfig
from pathlib import Path

__all__ = ["main"]


def main(library: str | Path | None = None) -> None:
    """Play the demo; exit with 1 unless every claim is proved.

    `library` is where the modules are, this Python's own unless said. The database is
    a private one that is gone afterwards; with DURABLE_DATABASE_URL it is that one, and
    what remains there is durable's schema.
    """
    try:
        from durable.demo.story import Failed, play  # noqa: PLC0415 - needs durable[demo]
    except ModuleNotFoundError as error:
        sys.exit(f"the demo needs {error.name}: pip install 'durable[demo]'")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        proved = play(Path(library or sysconfig.get_path("stdlib")))
    except Failed as failure:
        sys.exit(f"durable demo: {failure}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if not proved:
        sys.exit(1)
