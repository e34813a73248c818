"""A zygote that has imported the tasks and clients of our own crash tests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from durable.testing._references import Home
from durable.testing._zygote import Child, Zygote
from durable.testing._zygote import zygote as started
from tests.support.processes import ROOT

__all__ = ["Child", "Zygote", "zygote"]

# what is imported by the zygote costs no child time
IMPORTED: Final = [
    Home(f"tests.support.{name}", None)
    for name in ("crashing", "lingering", "ordering")
]


@contextlib.contextmanager
def zygote(directory: Path, **environment: str) -> Iterator[Zygote]:
    """Start a zygote; in the end, nothing of it is left."""
    path = [str(ROOT), *sys.path]
    with started(
        directory, IMPORTED, path=path, cwd=ROOT, environment=environment
    ) as zygote:
        yield zygote
