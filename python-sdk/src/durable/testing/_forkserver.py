"""The fork servers of this process: one per set of modules, kept until it ends."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from durable.testing._forkserver_process import ForkServer, forkserver
from durable.testing._references import Home

__all__ = ["forkserver_for"]

_forkservers: Final[dict[tuple[object, ...], ForkServer]] = {}
_exits: Final = ExitStack()
atexit.register(_exits.close)


def forkserver_for(homes: Sequence[Home], path: Sequence[str], cwd: Path) -> ForkServer:
    """Return a fork server that has imported these modules, from this path."""
    known = (tuple(homes), tuple(path), cwd)
    if known not in _forkservers or not _forkservers[known].is_alive():
        directory = Path(tempfile.mkdtemp(prefix="durable-"))
        _exits.callback(shutil.rmtree, directory, ignore_errors=True)
        homes = [Home("durable.testing._live_workers", None), *homes]
        started = forkserver(directory, homes, path=path, cwd=cwd)
        _forkservers[known] = _exits.enter_context(started)
    return _forkservers[known]
