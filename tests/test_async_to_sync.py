"""The synchronous client is generated from the asynchronous one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.processes import ROOT

TOOL = ROOT / "python-sdk" / "tools" / "async_to_sync.py"
FUTURE = "from __future__ import annotations\n"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), str(folder)]
    command += options
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[str], str]:
    """Return the converted module, without the header that every module has."""
    (tmp_path / "_async").mkdir()

    def convert(source: str) -> str:
        written = tmp_path / "_async" / "client.py"
        written.write_text(f'"""A module."""\n\n{FUTURE}\n{dedent(source)}')
        result = run(tmp_path)
        assert result.returncode == 0, result.stderr
        made = (tmp_path / "_sync" / "client.py").read_text()
        return made.partition(FUTURE)[2].strip("\n")

    return convert


def same(made: str, expected: str) -> bool:
    assert made == dedent(expected).strip("\n")
    return True


def test_removes_async_and_await(convert: Callable[[str], str]) -> None:
    made = convert("""
        async def spawn(pool, names):
            async with pool.connection() as session:
                async for row in session:
                    await row.save(await row.load())
            return [await name async for name in names]
        """)
    assert same(
        made,
        """
        def spawn(pool, names):
            with pool.connection() as session:
                for row in session:
                    row.save(row.load())
            return [name for name in names]
        """,
    )


def test_replaces_names_everywhere(convert: Callable[[str], str]) -> None:
    made = convert('''
        from durable._async.handle import AsyncTaskHandle

        __all__ = ["AsyncTaskHandle", "open_app"]


        class Opening(AsyncTaskHandle):
            """Open an `AsyncDurable`, or an AsyncDurableThing."""

            async def __aenter__(self):  # see AsyncDurable
                return await execute_async(self)
        ''')
    assert same(
        made,
        '''
        from durable._sync.handle import TaskHandle

        __all__ = ["TaskHandle", "open_app"]


        class Opening(TaskHandle):
            """Open an `Durable`, or an AsyncDurableThing."""

            def __enter__(self):  # see Durable
                return execute(self)
        ''',
    )


def test_makes_examples_synchronous_and_leaves_prose_alone(
    convert: Callable[[str], str],
) -> None:
    made = convert('''
        async def result(self):
            """Return the result; await it as often as you like.

                async with app.worker():
                    print(await handle.result(timeout=30))

            You may await many (two, three) at once, async or not.
            """
            print("await me")
            return f"{await self.load()}"
        ''')
    assert same(
        made,
        '''
        def result(self):
            """Return the result; await it as often as you like.

                with app.worker():
                    print(handle.result(timeout=30))

            You may await many (two, three) at once, async or not.
            """
            print("await me")
            return f"{self.load()}"
        ''',
    )


def test_omits_async_only_code(convert: Callable[[str], str]) -> None:
    made = convert("""
        import asyncio  # async only


        class Client:
            queue = "default"
            loop = None  # async only

            # what the worker
            # is for
            @overload
            @functools.wraps(
                print
            )
            async def worker(
                self,
            ) -> None:  # async only
                # twice
                if self.loop:

                    await self.loop()

            # stays
            async def close(self):
                pass
        """)
    assert same(
        made,
        """
        class Client:
            queue = "default"

            # stays
            def close(self):
                pass
        """,
    )


def test_moves_the_marked_statement_into_place(convert: Callable[[str], str]) -> None:
    made = convert("""
        def call(self, work):
            if self.closed:  # sync: if self.closed or self.loop.is_closed():
                raise RuntimeError("an AsyncDurable is closed")
            # sync: future = self.loop.submit(work)
            # sync: return future.result()  # not with await self.wait()
            return await asyncio.wait_for(
                work, self.timeout
            )


        @decorated
        def send(self):  # sync: def send(self, timeout=None):
            pass
        """)
    assert same(
        made,
        """
        def call(self, work):
            if self.closed or self.loop.is_closed():
                raise RuntimeError("an Durable is closed")
            future = self.loop.submit(work)
            return future.result()  # not with await self.wait()


        @decorated
        def send(self, timeout=None):
            pass
        """,
    )


def test_unwraps_the_type_of_an_awaitable(convert: Callable[[str], str]) -> None:
    made = convert("""
        from collections.abc import Awaitable, Callable, Coroutine
        from typing import Any


        def step(
            self, function: Callable[[dict[str, int]], Awaitable[list[int]]]
        ) -> Coroutine[Any, Any, list[Awaitable[int]]]:
            return self.run(function)
        """)
    assert same(
        made,
        """
        from collections.abc import Callable


        def step(self, function: Callable[[dict[str, int]], list[int]]) -> list[int]:
            return self.run(function)
        """,
    )


def test_imports_only_what_is_used(convert: Callable[[str], str]) -> None:
    made = convert("""
        import asyncio
        from collections.abc import AsyncIterator, Iterator

        from psycopg import AsyncConnection, sql


        async def ticks(session: AsyncConnection) -> AsyncIterator[sql.SQL]:
            await asyncio.sleep(1)
            yield session


        def tocks(lock: asyncio.Lock) -> Iterator[sql.SQL]:
            yield lock
        """)
    assert same(
        made,
        """
        import threading
        import time
        from collections.abc import Iterator

        from psycopg import Connection, sql


        def ticks(session: Connection) -> Iterator[sql.SQL]:
            time.sleep(1)
            yield session


        def tocks(lock: threading.Lock) -> Iterator[sql.SQL]:
            yield lock
        """,
    )


def test_names_the_source_of_a_generated_module(tmp_path: Path) -> None:
    (tmp_path / "_async").mkdir()
    (tmp_path / "_async" / "client.py").write_text(f'"""A client."""\n\n{FUTURE}')
    assert run(tmp_path).returncode == 0
    made = (tmp_path / "_sync" / "client.py").read_text()
    assert made.startswith("# Made from _async/client.py by tools/async_to_sync.py: ")


def test_check_fails_until_the_modules_are_written(tmp_path: Path) -> None:
    (tmp_path / "_async").mkdir()
    (tmp_path / "_async" / "handle.py").write_text(f'"""A handle."""\n\n{FUTURE}')
    checked = run(tmp_path, "--check")
    assert checked.returncode == 1
    assert "handle.py is out of date" in checked.stdout
    assert not (tmp_path / "_sync").exists()
    assert run(tmp_path).returncode == 0
    assert run(tmp_path, "--check").returncode == 0


def test_removes_a_module_whose_source_is_gone(tmp_path: Path) -> None:
    for folder in ("_async", "_sync"):
        (tmp_path / folder).mkdir()
    (tmp_path / "_async" / "handle.py").write_text(f'"""A handle."""\n\n{FUTURE}')
    (tmp_path / "_sync" / "old.py").write_text("")
    checked = run(tmp_path, "--check")
    assert "old.py is out of date" in checked.stdout
    assert run(tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "_sync").iterdir()] == ["handle.py"]


def test_fails_if_there_are_no_modules(tmp_path: Path) -> None:
    (tmp_path / "_async").mkdir()
    refused = run(tmp_path)
    assert refused.returncode == 2
    assert "there is no _async" in refused.stderr
