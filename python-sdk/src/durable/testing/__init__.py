"""Support for tests of tasks: databases, a clock, and crash tests.

    async def test_reminds_after_a_month(durable_app, durable_clock):
        async with durable_app(tasks=[Remind]) as app:
            handle = await app.spawn(Remind, "ada")
            await durable_clock.advance(days=30)
            assert (await handle.snapshot()).state == "completed"

Only time is simulated: tasks run in a worker on a real Postgres, and a crash is a
SIGKILL. The package includes a pytest plugin with the fixtures; everything here also
works without it. `durable.testing.sync` has the same for synchronous tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from durable.testing._applications import AppFactory
    from durable.testing._asserting import (
        Spawned,
        Step,
        assert_spawned,
        spawned,
        steps_of,
    )
    from durable.testing._clock import Clock
    from durable.testing._crashing import crash_at, crash_everywhere
    from durable.testing._databases import TestDatabases
    from durable.testing._driving import Ran, run_until_idle
    from durable.testing._inline import Stuck, run_inline
    from durable.testing._reports import CrashReport, CrashUnsafe, Life
    from durable.testing._servers import NoServer, Server, serve
    from durable.testing.replay import check_replay

__all__ = [
    "AppFactory",
    "Clock",
    "CrashReport",
    "CrashUnsafe",
    "Life",
    "NoServer",
    "Ran",
    "Server",
    "Spawned",
    "Step",
    "Stuck",
    "TestDatabases",
    "assert_spawned",
    "check_replay",
    "crash_at",
    "crash_everywhere",
    "run_inline",
    "run_until_idle",
    "serve",
    "spawned",
    "steps_of",
]

_HOMES: Final = {
    "_applications": ["AppFactory"],
    "_asserting": ["Spawned", "Step", "assert_spawned", "spawned", "steps_of"],
    "_clock": ["Clock"],
    "_crashing": ["crash_at", "crash_everywhere"],
    "_databases": ["TestDatabases"],
    "_driving": ["Ran", "run_until_idle"],
    "_inline": ["Stuck", "run_inline"],
    "_reports": ["CrashReport", "CrashUnsafe", "Life"],
    "_servers": ["NoServer", "Server", "serve"],
    "replay": ["check_replay"],
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import names on first use, since most tests need few of the modules."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    return getattr(home, name)
