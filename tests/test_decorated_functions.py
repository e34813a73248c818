"""A function is awaited, or run in a thread, depending on what it returns."""

# ruff: noqa: ARG002 - a task is given both, and may need neither

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import (
    InvalidArgument,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskResult,
    task,
)
from durable.registry import AnyTask, define
from tests.support.working import outcome

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap in a plain function that returns what the wrapped one does."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def in_async(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap in an async function."""

    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        returned = function(*args)
        return await returned if asyncio.iscoroutine(returned) else returned

    return wrapper


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap in a plain function that returns no awaitable."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return "cached"

    return wrapper


class Doubling:
    """A callable object around an async function."""

    async def __call__(self, number: int, ctx: Context) -> int:
        return await ctx.step("double", double, number)


class SyncDoubling:
    """A callable object around a plain function."""

    def __call__(self, number: int, ctx: SyncContext) -> int:
        return ctx.step("double", double_plainly, number)


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def double_plainly(number: int) -> int:
    return 2 * number


async def doubles(number: int, ctx: Context) -> int:
    return await ctx.step("double", double, number)


def doubles_in_a_thread(number: int, ctx: SyncContext) -> int:
    return ctx.step("double", double_plainly, number)


async def multiplies(factor: int, number: int, ctx: Context) -> int:
    return factor * await ctx.step("double", double, number)


# -- the run of a task -----------------------------------------------------------------


class Plainly(Task[int, int]):
    @plainly
    async def run(self, number: int, ctx: Context) -> int:
        return await ctx.step("double", double, number)


class Twice(Task[int, int]):
    @plainly
    @in_async
    @plainly
    async def run(self, number: int, ctx: Context) -> int:
        return await ctx.step("double", double, number)


class Static(Task[int, int]):
    run = staticmethod(plainly(doubles))


class OfTheClass(Task[int, int]):
    @classmethod
    @plainly
    async def run(cls, number: int, ctx: Context) -> int:
        return await ctx.step("double", double, number)


class Partial(Task[int, int]):
    run = functools.partial(multiplies, 1)


class PartialMethod(Task[int, int]):
    async def multiply(self, factor: int, number: int, ctx: Context) -> int:
        return factor * await ctx.step("double", double, number)

    run = functools.partialmethod(multiply, 1)


class Callably(Task[int, int]):
    run = Doubling()


class Hands(Task[int, int]):
    def run(self, number: int, ctx: Context) -> Coroutine[Any, Any, int]:
        return doubles(number, ctx)


class HandsOn(Task[int, int]):
    def run(self, number: int, ctx: Context) -> Awaitable[int]:
        return asyncio.ensure_future(doubles(number, ctx))


class Instance(Task[int, int]):
    def __init__(self) -> None:
        self.run = plainly(doubles)  # type: ignore[method-assign]

    def run(self, number: int, ctx: Context) -> int:
        raise AssertionError("the instance has its own")


class Untyped(Task):  # type: ignore[type-arg]
    run = functools.partial(multiplies, 1)


@task
@plainly
async def decorated(number: int, ctx: Context) -> int:
    return await ctx.step("double", double, number)


class Thread(Task[int, int]):
    @plainly
    def run(self, number: int, ctx: SyncContext) -> int:
        return ctx.step("double", double_plainly, number)


class ThreadPartial(Task[int, int]):
    run = functools.partial(plainly(doubles_in_a_thread))


class ThreadCallably(Task[int, int]):
    run = SyncDoubling()


@task
@plainly
def decorated_thread(number: int, ctx: SyncContext) -> int:
    return ctx.step("double", double_plainly, number)


ASYNC: list[AnyTask] = [
    Plainly,
    Twice,
    Static,
    OfTheClass,
    Partial,
    PartialMethod,
    Callably,
    Hands,
    HandsOn,
    Instance(),
    Untyped,
    decorated,
]
THREADS: list[AnyTask] = [Thread, ThreadPartial, ThreadCallably, decorated_thread]


@pytest.mark.parametrize("source", [*ASYNC, *THREADS])
async def test_gives_a_task_the_context_that_fits_its_return_value(
    dsn: str, source: AnyTask
) -> None:
    found = await outcome(dsn, source, 21)
    assert (found.result, found.error) == (42, None)
    assert define(source).is_async == (source in ASYNC)
    assert define(source).params_codec.type is int


async def test_accepts_any_awaitable_that_a_wrapper_returns(
    dsn: str,
) -> None:
    class Cached(Task[int, str]):
        run = cached(doubles)

    assert (await outcome(dsn, Cached, 1)).result == "cached"


def hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


async def test_refuses_an_unannounced_coroutine(dsn: str) -> None:
    class Hidden(Task[int, int]):
        run = staticmethod(hidden(doubles))

    found = await outcome(dsn, Hidden, 1)
    assert found.error is not None
    assert "coroutine" in found.error.message
    assert "functools.wraps" in found.error.message


# -- the function of a step ------------------------------------------------------------


class Calls:
    async def __call__(self, number: int) -> int:
        return await double(number)

    async def method(self, number: int) -> int:
        return await double(number)

    @classmethod
    async def of_the_class(cls, number: int) -> int:
        return await double(number)

    @staticmethod
    async def static(number: int) -> int:
        return await double(number)


STEPS: list[Callable[..., Any]] = [
    double,
    double_plainly,
    plainly(double),
    plainly(plainly(double)),
    in_async(double),
    in_async(double_plainly),
    plainly(double_plainly),
    functools.partial(double, 21),
    functools.partial(plainly(double), 21),
    Calls(),
    Calls().method,
    plainly(Calls().method),
    Calls.of_the_class,
    Calls.static,
    plainly(Calls.static),
]
AWAITED = [
    function
    for function in STEPS
    if function is not double_plainly and function is not STEPS[6]
]


def args_of(function: Callable[..., Any]) -> list[int]:
    return [] if isinstance(function, functools.partial) else [21]


@pytest.mark.parametrize("function", STEPS)
async def test_awaits_what_a_step_function_returns(
    dsn: str, function: Callable[..., Any]
) -> None:
    @task(max_attempts=1)
    async def steps(params: None, ctx: Context) -> Any:
        return await ctx.step("double", function, *args_of(function))

    found = await outcome(dsn, steps)
    assert (found.result, found.error) == (42, None)


@pytest.mark.parametrize("function", STEPS)
async def test_a_timeout_stops_what_can_be_stopped(
    dsn: str, function: Callable[..., Any]
) -> None:
    @task(max_attempts=1)
    async def steps(params: None, ctx: Context) -> Any:
        args = args_of(function)
        if function in AWAITED:
            return await ctx.step("double", function, *args, timeout=60)
        with pytest.raises(InvalidArgument, match="cannot be stopped"):
            await ctx.step("double", function, *args, timeout=60)
        return 42

    found = await outcome(dsn, steps)
    assert (found.result, found.error) == (42, None)


@pytest.mark.parametrize("function", STEPS)
async def test_awaits_what_a_transaction_function_returns(
    dsn: str, function: Callable[..., Any]
) -> None:
    def on(conn: psycopg.AsyncConnection[Any], *args: Any) -> Any:
        return function(*args)

    bound = functools.wraps(function)(on) if function in AWAITED else on

    @task(max_attempts=1)
    async def steps(params: None, ctx: Context) -> Any:
        return await ctx.transaction("double", bound, *args_of(function), as_type=int)

    found: TaskResult[Any] = await outcome(dsn, steps)
    if function in AWAITED:
        assert (found.result, found.error) == (42, None)
    else:
        assert found.error is not None
        assert "must be async" in found.error.message
