"""A value of any type is restored equal, or with a warning, or is refused."""

from __future__ import annotations

import collections
import enum
import ipaddress
import logging
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AfterValidator,
    AliasPath,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    StringConstraints,
    computed_field,
    field_serializer,
    model_serializer,
    model_validator,
)
from typing_extensions import TypedDict

from durable import TaskContext, task
from durable._core.values import Unsavable, codec
from tests.support.working import working

T = TypeVar("T")
BERLIN: Final = ZoneInfo("Europe/Berlin")


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    PAIR = (1, 2)


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    HIGH = 1


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Parcel:
    weight: Decimal
    labels: set[str]


@dataclass
class Express(Parcel):
    days: int = 1


@dataclass
class Scaled:
    size: int
    factor: InitVar[int]


@dataclass
class Counted:
    size: int
    times: int = field(default=0, init=False)


class Partial(TypedDict, total=False):
    size: int
    note: NotRequired[str]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Item(BaseModel):
    size: int = 0


class SameItem(BaseModel):
    size: int = 0


class Special(Item):
    extra: int = 1


class Box(BaseModel, Generic[T]):
    content: T


class Sizes(RootModel[list[int]]):
    pass


class Remembering(BaseModel):
    size: int
    _last: int = PrivateAttr(default=0)

    def remember(self) -> Remembering:
        self._last = 7
        return self


class Hiding(BaseModel):
    size: int = 0
    hidden: int | None = Field(None, exclude=True)


class Swapped(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    left: int = Field(alias="right")
    right: int = Field(alias="left")


class Aliased(BaseModel):
    size: int = Field(validation_alias=AliasPath("a", "b"), serialization_alias="c")


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    size: int


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    sizes: tuple[int, ...]
    colour: Colour


class Square(BaseModel):
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2


class Rounded(BaseModel):
    price: float

    @field_serializer("price")
    def round(self, price: float) -> float:
        return round(price, 2)


class Growing(BaseModel):
    """Reading it creates another value."""

    size: int

    @model_validator(mode="after")
    def grow(self) -> Growing:
        self.size += 1
        return self


class Other(BaseModel):
    size: int

    @model_serializer
    def write(self) -> dict[str, int]:
        return {"length": self.size}


class Revealed(BaseModel):
    key: SecretStr

    @field_serializer("key", when_used="json")
    def reveal(self, key: SecretStr) -> str:
        return key.get_secret_value()


class Number(int):
    pass


SAME: Final[list[tuple[Any, Any]]] = [
    (datetime, datetime(2026, 1, 1, 1, 2, 3, 456789)),
    (datetime, datetime(2026, 7, 1, tzinfo=UTC)),
    (datetime, datetime(2026, 7, 1, tzinfo=BERLIN)),
    (date, date(1, 1, 1)),
    (time, time(10, tzinfo=UTC)),
    (timedelta, timedelta(days=-1, microseconds=5)),
    (timedelta, timedelta.max),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("1E+30")),
    (Decimal, Decimal("0.1000000000000000000000000000000001")),
    (dict[UUID, int], {UUID(int=5): 1}),
    (dict[date, int], {date(2026, 1, 1): 1}),
    (dict[int, float], {1: 1e23}),
    (dict[float, int], {1e23: 1}),
    (Colour, Colour.RED),
    (Colour, Colour.GREEN),
    (Access, Access.READ | Access.WRITE),
    (Level, Level.HIGH),
    (dict[Word, int], {Word.YES: 1}),
    (set[int], {3, 1}),
    (frozenset[str], frozenset("ab")),
    (set[tuple[int, int]], {(1, 2)}),
    (bytes, b"ab"),
    (Path, Path("/a")),
    (deque[int], deque([1])),
    (collections.OrderedDict[str, int], collections.OrderedDict(a=1)),
    (defaultdict[str, list[int]], defaultdict(list, a=[1])),
    (Counter[str], Counter("aab")),
    (Point, Point(1)),
    (list[Point], [Point(1, 2)]),
    (Parcel, Parcel(Decimal("1.50"), {"a"})),
    (Counted, Counted(1)),
    (Partial, {}),
    (Partial, {"size": 1}),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog()),
    (list[Cat | Dog], [Cat(), Dog()]),
    (Item | Special, Special(extra=5)),
    (Box[int], Box[int](content=1)),
    (Box[Item], Box[Item](content=Item())),
    (Sizes, Sizes([1])),
    (Remembering, Remembering(size=1)),
    (Hiding, Hiding(size=1)),
    (Aliased, Aliased.model_validate({"a": {"b": 1}})),
    (Loose, Loose.model_validate({"size": 1, "more": [1, {"a": None}]})),
    (Strict, Strict(at=datetime(2026, 1, 1), sizes=(1,), colour=Colour.RED)),
    (Square, Square(side=2)),
    (Rounded, Rounded(price=1.25)),
    (Revealed, Revealed(key=SecretStr("secret"))),
    (SecretStr, SecretStr("")),
    (int | str, "1"),
    (int | bool, True),
    (float | int, 2**60 + 1),
    (int | float, 1e23),
    (Decimal | float, Decimal("1.5")),
    (date | datetime, datetime(2026, 1, 1)),
    (float, 7),
    (Any, {"a": [1e23, -1.5, "x", None]}),
    (Sequence[int], [1]),
    (Mapping[str, int], {"a": 1}),
    (Iterable[int], [1]),
    (ipaddress.IPv4Address, ipaddress.IPv4Address("1.1.1.1")),
    (re.Pattern[str], re.compile("a")),
]

CHANGED: Final[list[tuple[Any, Any]]] = [
    (int, Level.HIGH),
    (int, Number(5)),
    (int, True),
    (str, Word.YES),
    (tuple[int, int], Point(1, 2)),
    (dict[str, int], Counter("aab")),
    (Sequence[int], (1, 2)),
    (Iterable[int], {1}),
    (list[Any], [(1, 2)]),
    (dict[str, Any], {"a": Item(size=1)}),
    (dict[str, Any], {"a": Parcel(Decimal(1), {"x"})}),
    (dict[str, Any], {"a": datetime(2026, 1, 1)}),
    (dict[str, Any], {"a": Decimal("1.10")}),
    (dict[str, Any], {"a": UUID(int=1)}),
    (dict[str, Any], {"a": {1}}),
    (dict[str, Any], {"a": b"x"}),
    (dict[str, Any], {"a": Colour.RED}),
    (dict[str, Any], {"a": timedelta(days=1)}),
    (dict[str, Any], {"a": Sizes([1])}),
    (dict[str, Any], {"a": Path("/a")}),
    (dict, {1: "a"}),
    (Box[Any], Box[Any](content=Item())),
    (Item | SameItem, SameItem()),
    (Item, Special(size=2)),
    (Remembering, Remembering(size=1).remember()),
    (Rounded, Rounded(price=1.234)),
    (Annotated[str, PlainSerializer(str.upper)], "a"),
    (Annotated[str, StringConstraints(to_upper=True)], "a"),
    (datetime | str, "2026-01-01T00:00:00"),
    (Colour | int, Colour.RED),
    (float, -0.0),
    (Box[float], Box[float](content=-0.0)),
]

REFUSED: Final[list[tuple[Any, Any]]] = [
    (str, None),
    (int, 2.0),
    (bool, 1),
    (str, "\0"),
    (dict[str, Any], {"a\0": 1}),
    (dict[str, Any], {"a": "\ud800"}),
    (float, float("nan")),
    (float, 2**53 + 1),
    (Box[float], Box[float](content=float("inf"))),
    (dict[str, Any], {"a": float("inf")}),
    (Decimal, Decimal("NaN")),
    (dict[str, Any], {"a": Decimal("Infinity")}),
    (dict[None, int], {None: 1}),
    (dict[tuple[int, int], int], {(1, 2): 3}),
    (dict, {(1, 2): 3}),
    (dict, {1: "a", "1": "b"}),
    (Any, {1: "a"}),
    (Any, (1, 2)),
    (Any, Item()),
    (Any, datetime(2026, 1, 1)),
    (bytes, b"\xff"),
    (dict[str, Any], {"a": b"\xff"}),
    (dict[str, Any], {"a": object()}),
    (dict[str, Any], {"a": int}),
    (Colour, Colour.PAIR),
    (date, datetime(2026, 1, 1, 5)),
    (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=3601)))),
    (AwareDatetime, datetime(2026, 1, 1)),
    (Scaled, Scaled(1, 2)),
    (dict[str, Any], {"a": Scaled(1, 2)}),
    (Partial, {"size": 1, "other": 2}),
    (Partial, {"size": "x"}),
    (Item, Special(extra=5)),
    (list[Item], [Special(extra=5)]),
    (Parcel, Express(Decimal(1), set(), 5)),
    (Hiding, Hiding(hidden=5)),
    (Box[Hiding], Box[Hiding](content=Hiding(hidden=5))),
    (dict[str, Any], {"a": Hiding(hidden=5)}),
    (Swapped, Swapped(left=1, right=2)),
    (Other, Other(size=1)),
    (Growing, Growing(size=1)),
    (Annotated[int, AfterValidator(lambda number: number + 1)], 1),
    (Annotated[int, Field(gt=0)], -1),
    (Annotated[str, StringConstraints(max_length=1)], "ab"),
    (Json[dict[str, int]], {"a": 1}),
    (SecretStr, SecretStr("secret")),
    (SecretBytes, SecretBytes(b"secret")),
    (Secret[int], Secret[int](5)),
    (list[SecretStr], [SecretStr("secret")]),
    (dict[SecretStr, int], {SecretStr("secret"): 1}),
    (Box[SecretStr], Box[SecretStr](content=SecretStr("secret"))),
    (dict[str, Any], {"a": SecretStr("secret")}),
    (dict[str, Any], {"a": Box[SecretStr](content=SecretStr("secret"))}),
    (re.Pattern[str], re.compile("a", re.IGNORECASE)),
]


def counted() -> Counted:
    made = Counted(1)
    made.times = 5
    return made


REFUSED.append((Counted, counted()))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.name == "durable.values"]


@pytest.mark.parametrize(("tp", "value"), SAME)
def test_restores_an_equal_value(
    tp: Any, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    how = codec(tp)
    text, read = how.roundtrip(value)
    assert read == value
    assert type(read) is type(value) or type(read) is float
    assert how.dump(value) == text
    assert said(caplog) == []


@pytest.mark.parametrize(("tp", "value"), CHANGED)
def test_warns_once_of_a_value_that_changes(
    tp: Any, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    how: Any = type(codec(tp))(tp)  # a codec that has not warned yet
    assert how.dump(value) == how.dump(value)
    (warning,) = said(caplog)
    assert "comes back changed" in warning


@pytest.mark.parametrize(("tp", "value"), REFUSED)
def test_refuses_a_value_that_would_lose_data_or_cannot_be_read(
    tp: Any, value: Any
) -> None:
    for write in (codec(tp).dump, codec(tp).roundtrip):
        with pytest.raises(Unsavable):
            write(value)


def results() -> list[Any]:
    """Create a task for each value, which returns it."""
    tasks = []
    for index, (tp, value) in enumerate([*SAME, *CHANGED, *REFUSED]):

        @task(name=f"returns-{index}", max_attempts=3)
        async def returns(
            params: None, ctx: TaskContext[Any], value: Any = value
        ) -> Any:
            return value

        returns.run.__annotations__["return"] = tp
        tasks.append(returns)
    return tasks


async def test_restores_the_same_values_from_the_database(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The codec's guarantee for a value holds for a result stored in Postgres."""
    tasks = results()
    with caplog.at_level(logging.ERROR):
        async with working(dsn, *tasks) as (app, worker):
            handles = [await app.spawn(one) for one in tasks]
            await worker.drain()
            found = [await handle.snapshot() for handle in handles]
    for (tp, value), end in zip(SAME, found[: len(SAME)], strict=True):
        assert end.result == value, tp
    for end in found[len(SAME) : -len(REFUSED)]:
        assert end.state == "completed"
    for (tp, _), end in zip(REFUSED, found[-len(REFUSED) :], strict=True):
        assert (end.state, end.attempt) == ("failed", 1), tp
        assert end.error is not None
        assert end.error.type.startswith("Unsavable"), tp


@pytest.mark.parametrize("depth", [50, 150])
def test_compares_deeply_nested_values(depth: int) -> None:
    value: Any = (1,)
    for _ in range(depth):
        value = [value]
    assert codec(list[Any]).roundtrip(value)[1] != value
