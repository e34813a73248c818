"""A value is the same on the first run and on every replay, or is refused at once."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from types import ModuleType, NoneType
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from durable._core.values import (
    MAX_BYTES,
    PLAIN,
    UNTYPED,
    Unsavable,
    codec,
    step_codec,
)
from durable.errors import InvalidArgument

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")


class Order(BaseModel):
    id: int
    amount: float
    note: str | None = None


class Alias(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    order_id: int = Field(alias="orderId")


class Cat(BaseModel):
    name: str


class Dog(BaseModel):
    name: str
    bark: str = "wau"


@dataclass
class Parcel:
    weight: Decimal
    labels: set[str]
    sent_at: datetime


class Colour(StrEnum):
    RED = "red"


class Node(BaseModel):
    next: Node | None = None


class Plain:
    """Pydantic has no schema for it."""


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    x: float


class Faulty(BaseModel):
    x: int

    @field_serializer("x")
    def refuse(self, _: int) -> int:
        raise KeyError("a bug of the user's")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
plain = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


def exact(value: object) -> str:
    """Distinguish values that compare equal: by order, types, and the sign of zero."""
    return repr(value)


@given(plain)
def test_restores_plain_json_exactly(value: Any) -> None:
    assert exact(PLAIN.load(PLAIN.dump(value))) == exact(value)


@pytest.mark.parametrize(
    "value", [1e22, -0.0, 5e-324, 2**70, {"b": 1, "a": 2}, "\\u0000", "\\", "\\\\u0000"]
)
def test_restores_values_that_json_parsers_get_wrong(value: Any) -> None:
    assert exact(PLAIN.load(PLAIN.dump(value))) == exact(value)
    typed = codec(type(value))
    assert exact(typed.load(typed.dump(value))) == exact(value)


@given(st.lists(plain) | st.dictionaries(text, plain))
def test_writes_json_that_any_reader_accepts(value: Any) -> None:
    written = PLAIN.dump(value)
    assert exact(json.loads(written)) == exact(value)
    assert PLAIN.load(written.encode()) == value


def test_writes_compact_json() -> None:
    assert PLAIN.dump({"b": [1, "ä"], "a": None}) == '{"b":[1,"ä"],"a":null}'
    assert codec(Cat).dump(Cat(name="Tom")) == '{"name":"Tom"}'


@pytest.mark.parametrize(
    ("tp", "value"),
    [
        (Order, Order(id=7, amount=1.5)),
        (Parcel, Parcel(Decimal("1.50"), {"a", "b"}, datetime(2030, 1, 1, tzinfo=UTC))),
        (UUID, UUID(int=7)),
        (timedelta, timedelta(seconds=1.5)),
        (Colour, Colour.RED),
        (tuple[int, str], (1, "a")),
        (dict[int, Order], {7: Order(id=7, amount=1)}),
        (Cat | None, Cat(name="Tom")),
        (Cat | None, None),
        (NoneType, None),
        (bytes, b"abc"),
        (Annotated[int, Field(ge=0), []], 7),
    ],
)
def test_restores_a_typed_value_as_its_type(
    tp: Any, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    written, read = codec(tp).roundtrip(value)
    assert read == value
    assert type(read) is type(value)
    assert caplog.messages == []
    assert codec(tp).load(written.encode()) == value


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: "a"},
        {None: 1},
        [datetime(2030, 1, 1)],
        {"order": Order(id=7, amount=1)},
        Colour.RED,
        {1},
        b"abc",
        Decimal(1),
        type("Text", (str,), {})("a"),
    ],
)
def test_accepts_only_plain_json_without_a_type(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"annotate what the function returns.*as_type="
    ):
        PLAIN.dump(value)
    with pytest.raises(Unsavable):
        PLAIN.validate(value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_refuses_numbers_that_json_does_not_have(number: float) -> None:
    cases: list[tuple[Any, Any]] = [
        (UNTYPED, number),
        (UNTYPED, {"x": [number]}),
        (float, number),
        (list[float], [1.0, number]),
        (float | None, number),
        (Order, Order(id=7, amount=number)),
        (Constants, Constants(x=number)),
        (dict[str, Any], {"x": number, "y": None}),
    ]
    for tp, value in cases:
        with pytest.raises(Unsavable):
            codec(tp).dump(value)


@pytest.mark.parametrize("value", ["a\0b", "\0", "\\\0", "\ud800", "x\udfff"])
def test_refuses_text_that_postgres_cannot_store(value: str) -> None:
    cases: list[tuple[Any, Any]] = [
        (UNTYPED, value),
        (UNTYPED, {value: 1}),
        (str, value),
        (Cat, Cat(name=value)) if value.isascii() else (UNTYPED, [value]),
    ]
    for tp, case in cases:
        with pytest.raises(Unsavable):
            codec(tp).dump(case)


def test_refuses_a_value_above_the_limit() -> None:
    assert len(PLAIN.dump("x" * (MAX_BYTES - 2))) == MAX_BYTES
    for tp in (UNTYPED, str):
        with pytest.raises(InvalidArgument, match="16,777,217 bytes"):
            codec(tp).dump("x" * (MAX_BYTES - 1))


def test_refuses_a_value_that_it_could_not_read_back() -> None:
    deep: list[Any] = []
    for _ in range(199):
        deep = [deep]
    assert PLAIN.load(PLAIN.dump(deep)) == deep
    circle: list[Any] = []
    circle.append(circle)
    for value in ([deep], {"x": deep}, circle, 10**4300, -(10**4300)):
        with pytest.raises(Unsavable):
            PLAIN.dump(value)
    assert PLAIN.load(PLAIN.dump(10**4299)) == 10**4299

    node = Node()
    for _ in range(200):
        node = Node.model_construct(next=node)
    with pytest.raises(Unsavable):
        codec(Node).roundtrip(node)


@pytest.mark.parametrize(
    ("tp", "value"),
    [
        (int, "7"),
        (str, 7),
        (NoneType, 0),
        (Order, {"id": 7, "amount": 1}),
        (Order, Order(id=7, amount=1).model_copy(update={"id": "x"})),
        (Cat | Dog, Order(id=7, amount=1)),
        (list[int], ["a"]),
        (Faulty, Faulty(x=1)),
    ],
)
def test_refuses_a_value_that_is_not_of_its_type(tp: Any, value: Any) -> None:
    with pytest.raises(Unsavable, match=r"cannot be saved as"):
        codec(tp).dump(value)


def test_writes_field_names_and_also_reads_aliases() -> None:
    alias = Alias.model_validate({"orderId": 7})
    assert codec(Alias).dump(alias) == '{"order_id":7}'
    assert codec(Alias).load('{"order_id":7}') == alias
    assert codec(Alias).load('{"orderId":7}') == alias
    assert codec(Alias).validate({"order_id": 7}) == alias


def test_raises_a_validation_error_for_invalid_params() -> None:
    with pytest.raises(ValidationError):
        codec(Order).validate({"id": "x"})
    with pytest.raises(ValidationError):
        codec(Order).load('{"id":"x"}')
    with pytest.raises(ValueError, match="line 1"):
        PLAIN.load("nonsense")


def test_refuses_a_type_without_a_schema() -> None:
    for tp in (Plain, list[Plain], 5):
        with pytest.raises(TypeError):
            codec(tp)


def test_treats_any_and_object_as_no_type() -> None:
    for tp in (None, Any, object, T, UNTYPED):
        assert codec(tp) is PLAIN


def test_creates_a_codec_once_per_type() -> None:
    assert codec(Order) is codec(Order)
    assert codec(list[Order]) is codec(list[Order])
    assert codec(Cat | Dog) is not codec(Dog | Cat)


async def charge(order: Order) -> Order:
    return order


def lazily(order: Order) -> Awaitable[Order]:
    return charge(order)


def coroutine(order: Order) -> Coroutine[Any, Any, Order]:
    return charge(order)


def unannotated(order):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return order


def anything(order: Order) -> Any:
    return order


def nothing() -> None: ...


def halved(number: Fraction) -> float:
    return float(number) / 2


def fraction() -> Fraction:
    raise AssertionError("never called")


@functools.wraps(charge)
async def wrapped(*args: Any) -> Any:
    return await charge(*args)


class Shop:
    def method(self) -> Order: ...  # type: ignore[empty-body]

    @classmethod
    def made(cls) -> Order: ...  # type: ignore[empty-body]

    @staticmethod
    def static() -> Order: ...  # type: ignore[empty-body]

    def __call__(self) -> Order: ...  # type: ignore[empty-body]


class Box(Generic[T]):
    def content(self) -> T: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    "function",
    [
        charge,
        lazily,
        coroutine,
        wrapped,
        functools.partial(charge, Order(id=7, amount=1)),
        functools.partial(functools.partial(charge), None),
        functools.partial(Shop().method),
        Shop().method,
        Shop.made,
        Shop.static,
        Shop(),
        Order,
    ],
)
def test_takes_a_steps_type_from_its_function(function: Any) -> None:
    assert step_codec(function).type is Order
    assert step_codec(function) is step_codec(function)


@pytest.mark.parametrize(
    "function",
    [
        unannotated,
        anything,
        lambda: Order(id=7, amount=1),
        len,
        "".join,
        functools.partial(len, []),
        Box[int]().content,
    ],
)
def test_treats_a_function_without_annotation_as_plain(function: Any) -> None:
    assert step_codec(function) is PLAIN


def test_prefers_the_type_given_in_the_call() -> None:
    assert step_codec(charge, as_type=Cat).type is Cat
    assert step_codec(fraction, as_type=float).type is float
    assert step_codec(nothing).type is NoneType


def test_resolves_only_the_return_annotation() -> None:
    assert step_codec(halved).type is float


def test_refuses_an_unknown_type_before_the_step_runs() -> None:
    class Local(BaseModel): ...

    def local() -> Local:
        raise AssertionError("never called")

    def plain() -> Plain:
        raise AssertionError("never called")

    def iterator() -> Iterator[Local]:
        raise AssertionError("never called")

    for function in (local, plain, fraction, iterator):
        with pytest.raises(TypeError):
            step_codec(function)
    with pytest.raises(TypeError, match=r"not under TYPE_CHECKING.*as_type="):
        step_codec(fraction)


def test_distinguishes_equal_code_in_two_modules() -> None:
    source = "def find() -> Found: ..."
    modules = [ModuleType("cats"), ModuleType("dogs")]
    for module, found in zip(modules, (Cat, Dog), strict=True):
        vars(module)["Found"] = found
        code = f"from __future__ import annotations\n{source}"
        exec(code, vars(module))  # noqa: S102 - our own text
    assert [step_codec(module.find).type for module in modules] == [Cat, Dog]


def test_distinguishes_functions_with_the_same_code() -> None:
    def made(tp: Any) -> Callable[[], Any]:
        def find() -> Any: ...

        find.__annotations__["return"] = tp
        return find

    assert [step_codec(made(tp)).type for tp in (Cat, Dog, Cat)] == [Cat, Dog, Cat]
