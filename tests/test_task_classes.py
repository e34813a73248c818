"""A task's class holds all its options, and mistakes are found before it runs."""

# ruff: noqa: ARG002, ARG005 - a task is given both, and may need neither

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from datetime import timedelta
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest
from pydantic import BaseModel

from durable._core.values import PLAIN
from durable.errors import InvalidArgument
from durable.registry import Registry, TaskDefinition, define
from durable.retry import Retry
from durable.task import Task, task

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")
S = TypeVar("S")


class Order(BaseModel):
    id: int


class Slip(BaseModel):
    carrier: str


class ProcessOrder(Task[Order, str]):
    max_attempts = 3
    retry = Retry.fixed(5)
    headers = {"team": "shop"}  # noqa: RUF012 - as people write it
    start_timeout = timedelta(minutes=1)
    execution_timeout = 90
    non_retryable = (ValueError,)
    queue = "orders"

    async def run(self, order: Order, ctx: Any) -> str:
        return f"order {order.id}"


class HTTPFetch(Task[str, None]):
    def run(self, url: str, ctx: Any) -> None: ...


class Greet(Task[str, str]):
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def run(self, name: str, ctx: Any) -> str:
        return f"{self.greeting} {name}"


class Logged(Task[T, Slip]):
    max_attempts = 7


class Batch(Logged[list[S]], Generic[S]): ...


class Ship(Batch[Order]):
    async def run(self, orders: list[Order], ctx: Any) -> Slip: ...  # type: ignore[empty-body]


class Forward(Task["Later", "list[Later] | None"]):
    def run(self, params: Later, ctx: Any) -> None: ...


class Later(BaseModel):
    id: int


class Bare(Task):  # type: ignore[type-arg]
    async def run(self, order: Order, ctx: Any) -> Slip: ...  # type: ignore[empty-body]


@task
async def send_mail(order: Order, ctx: Any) -> str:
    """Send a mail."""
    return f"mail {order.id}"


@task(name="reply", max_attempts=None, retry=Retry.none(), non_retryable=(KeyError,))
def answer(order: Order, ctx: Any) -> Slip:
    return Slip(carrier=str(order.id))


def types(found: TaskDefinition[Any, Any]) -> tuple[Any, Any]:
    return found.params_codec.type, found.result_codec.type


def test_reads_all_options_of_a_class() -> None:
    found = define(ProcessOrder)
    assert found.name == "process-order"
    assert found.queue == "orders"
    assert found.non_retryable == (ValueError,)
    assert found.options == {
        "max_attempts": 3,
        "retry": {"kind": "fixed", "base_seconds": 5.0},
        "headers": {"team": "shop"},
        "start_timeout": 60.0,
        "execution_timeout": 90.0,
    }


def test_sets_no_options_that_the_class_does_not_set() -> None:
    found = define(HTTPFetch)
    assert (found.name, found.queue) == ("http-fetch", None)
    assert (found.options, found.non_retryable) == ({}, ())


@pytest.mark.parametrize(
    ("source", "params", "result"),
    [
        (ProcessOrder, Order, str),
        (HTTPFetch, str, NoneType),
        (Greet("hello"), str, str),
        (Ship, list[Order], Slip),
        (Forward, Later, list[Later] | None),
        (Bare, Order, Slip),
        (send_mail, Order, str),
        (answer, Order, Slip),
    ],
)
def test_finds_the_types_of_params_and_result(
    source: Any, params: Any, result: Any
) -> None:
    assert types(define(source)) == (params, result)


def test_uses_plain_json_without_types() -> None:
    class Untyped(Task[Any, Any]):
        def run(self, params: Any, ctx: Any) -> Any: ...

    @task
    def untyped(params, ctx): ...  # type: ignore[no-untyped-def]  # noqa: ANN202

    for source in (Untyped, untyped):
        found = define(source)
        assert found.params_codec is PLAIN
        assert found.result_codec is PLAIN


def test_inherits_options_but_not_names() -> None:
    class Express(Ship):
        name = "express"

    class Overnight(Express): ...

    assert define(Ship).options == {"max_attempts": 7}
    assert define(Express).options == {"max_attempts": 7}
    assert [cls.name for cls in (Ship, Express, Overnight)] == [
        "ship",
        "express",
        "overnight",
    ]


async def test_accepts_a_coroutine_function_as_a_task() -> None:
    found = define(send_mail)
    assert (found.name, found.is_async) == ("send-mail", True)
    assert await send_mail.run(Order(id=7), None) == "mail 7"
    assert type(send_mail).__doc__ == "Send a mail."


def test_accepts_a_function_with_options_as_a_task() -> None:
    found = define(answer)
    assert (found.name, found.is_async) == ("reply", False)
    assert found.options == {"max_attempts": None, "retry": {"kind": "none"}}
    assert found.non_retryable == (KeyError,)
    assert found.bind()(Order(id=7), None) == Slip(carrier="7")


def test_knows_which_tasks_need_a_thread() -> None:
    assert define(ProcessOrder).is_async
    assert not define(HTTPFetch).is_async


def test_creates_a_new_instance_of_a_class_for_every_run() -> None:
    bound = define(HTTPFetch).bind
    first, second = bound(), bound()
    assert inspect.ismethod(first)
    assert inspect.ismethod(second)
    assert first.__self__ is not second.__self__


def test_uses_a_registered_instance_for_every_run() -> None:
    found = define(Greet("hello"))
    assert found.bind()("you", None) == found.bind()("you", None) == "hello you"


@pytest.mark.parametrize(
    "attribute",
    ["game", "same", "readers", "queues", "retrys", "header", "timeout", "max_attemps"],
)
def test_a_class_may_have_other_attributes(attribute: str) -> None:
    body = {attribute: 3, "run": lambda self, params, ctx: None}
    assert define(type("Shop", (Task,), body)).options == {}


@pytest.mark.parametrize(
    "option",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": 7},
        {"queue": ""},
        {"max_attempts": 0},
        {"max_attempts": "3"},
        {"retry": 5},
        {"headers": {"durable:x": 1}},
        {"start_timeout": -1},
        {"execution_timeout": "1 h"},
        {"non_retryable": ValueError},
        {"non_retryable": ("ValueError",)},
        {"non_retryable": (KeyboardInterrupt,)},
    ],
)
def test_refuses_an_invalid_option_when_the_class_is_created(
    option: dict[str, Any],
) -> None:
    with pytest.raises(InvalidArgument, match=r"^Shop: "):
        type("Shop", (Task,), option)
    with pytest.raises(InvalidArgument):
        task(**option)(lambda params, ctx: None)


def test_refuses_an_unknown_option() -> None:
    with pytest.raises(InvalidArgument, match="max_attemps"):
        task(max_attemps=3)(lambda params, ctx: None)  # type: ignore[call-overload]


@pytest.mark.parametrize("function", [lambda: None, lambda params: None, len, Order])
def test_accepts_only_functions_of_two_arguments_as_tasks(function: Any) -> None:
    with pytest.raises(TypeError):
        task(function)


def test_refuses_a_task_without_a_schema_when_it_is_defined() -> None:
    class NoSchema: ...

    class Params(Task[NoSchema, None]):
        def run(self, params: NoSchema, ctx: Any) -> None: ...

    class Result(Task[None, NoSchema]):
        def run(self, params: None, ctx: Any) -> NoSchema: ...  # type: ignore[empty-body]

    @task
    def unresolvable(params: Fraction, ctx: Any) -> None: ...

    for source in (Params, Result, unresolvable):
        with pytest.raises(TypeError):
            define(source)


def test_refuses_to_register_anything_that_cannot_run() -> None:
    class Yields(Task[None, Any]):
        async def run(self, params: None, ctx: Any) -> AsyncIterator[int]:
            yield 1

    with pytest.raises(TypeError, match="has no run"):
        define(Logged)  # type: ignore[type-abstract]
    with pytest.raises(TypeError, match=r"register an instance, Greet\(…\)"):
        define(Greet)
    with pytest.raises(TypeError, match="yields"):
        define(Yields)


def test_registers_a_task_under_its_name() -> None:
    registry = Registry([ProcessOrder, send_mail])
    assert list(registry.by_name) == ["process-order", "send-mail"]
    for source in (ProcessOrder, "process-order"):
        found: TaskDefinition[Any, Any] = registry.definition_for(source)
        assert found is registry.by_name["process-order"]
    assert registry.add(ProcessOrder) is registry.by_name["process-order"]


def test_refuses_two_tasks_of_one_name() -> None:
    registry = Registry([ProcessOrder])

    class Other(Task[None, None]):
        name = "process-order"

        def run(self, params: None, ctx: Any) -> None: ...

    for source in (Other, ProcessOrder()):
        with pytest.raises(
            InvalidArgument, match='two tasks are named "process-order"'
        ):
            registry.add(source)
    with pytest.raises(InvalidArgument, match=r"ProcessOrder and .*Other"):
        registry.definition_for(Other)


def test_a_class_refers_to_its_registered_instance() -> None:
    registry = Registry([Greet("hello")])
    assert registry.definition_for(Greet) is registry.by_name["greet"]
    assert registry.definition_for(Greet("hi")) is registry.by_name["greet"]


def test_spawns_tasks_that_other_workers_run() -> None:
    registry = Registry()
    found = registry.definition_for(ProcessOrder)
    assert found.name == "process-order"
    assert registry.definition_for(ProcessOrder) is found
    assert registry.by_name == {}


def test_suggests_the_task_that_was_probably_meant() -> None:
    registry = Registry([ProcessOrder])
    with pytest.raises(InvalidArgument, match='did you mean "process-order"'):
        registry.definition_for("proces-order")
    with pytest.raises(InvalidArgument, match="tasks="):
        registry.definition_for("xyz")
