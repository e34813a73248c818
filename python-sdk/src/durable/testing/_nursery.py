"""The zygotes of this process: one for each set of modules, kept until it ends."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from durable.testing._references import Home
from durable.testing._zygote import Zygote, zygote

__all__ = ["zygote_for"]

_zygotes: Final[dict[tuple[object, ...], Zygote]] = {}
_exits: Final = ExitStack()
atexit.register(_exits.close)


def zygote_for(homes: Sequence[Home], path: Sequence[str], cwd: Path) -> Zygote:
    """Return a zygote that has imported these modules, from this path."""
    known = (tuple(homes), tuple(path), cwd)
    if known not in _zygotes or not _zygotes[known].is_alive():
        directory = Path(tempfile.mkdtemp(prefix="durable-"))
        _exits.callback(shutil.rmtree, directory, ignore_errors=True)
        homes = [Home("durable.testing._living", None), *homes]
        started = zygote(directory, homes, path=path, cwd=cwd)
        _zygotes[known] = _exits.enter_context(started)
    return _zygotes[known]
