"""Options are validated before anything is sent."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable._core.arguments import moment, seconds
from durable.errors import InvalidArgument
from durable.options import spawn_options_json
from durable.retry import Retry

LONGEST = 10_000_000_000


class Nowhere(tzinfo):
    """A time zone without an offset from UTC."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(seconds=LONGEST)))
def test_accepts_a_duration_as_a_timedelta(duration: timedelta) -> None:
    assert seconds(duration, "timeout") == duration.total_seconds()


@given(st.one_of(st.integers(0, LONGEST), st.floats(0, LONGEST)))
def test_accepts_a_duration_in_seconds(duration: float) -> None:
    number = seconds(duration, "timeout")
    assert number == duration
    assert isinstance(number, float)
    assert math.copysign(1, number) == 1


def test_accepts_none_as_no_duration() -> None:
    assert seconds(None, "timeout") is None


@given(
    st.one_of(
        st.floats(max_value=0, exclude_max=True),
        st.integers(max_value=-1),
        st.timedeltas(max_value=timedelta(microseconds=-1)),
        st.integers(min_value=LONGEST + 1),
        st.sampled_from([math.nan, math.inf, 1e300, 10**5000, -(10**5000)]),
        st.sampled_from([True, False, "1", b"1", [], datetime(2030, 1, 1), 1j]),
    )
)
def test_refuses_invalid_durations(duration: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^timeout must be"):
        seconds(duration, "timeout")


@given(st.datetimes(timezones=st.timezones()))
def test_accepts_a_moment_in_any_time_zone(when: datetime) -> None:
    assert moment(when, "wake_at") is when


@given(st.one_of(st.datetimes(), st.dates(), st.integers(), st.none()))
def test_refuses_a_moment_without_a_time_zone(when: Any) -> None:
    with pytest.raises(ValueError, match="wake_at must be a datetime with a time zone"):
        moment(when, "wake_at")


def test_refuses_a_moment_whose_time_zone_has_no_offset() -> None:
    with pytest.raises(InvalidArgument):
        moment(datetime(2030, 1, 1, tzinfo=Nowhere()), "wake_at")
    moment(datetime(2030, 1, 1, tzinfo=UTC), "wake_at")


@pytest.mark.parametrize(
    ("retry", "options"),
    [
        (Retry.none(), {"kind": "none"}),
        (Retry.fixed(5), {"kind": "fixed", "base_seconds": 5}),
        (Retry.fixed(timedelta(minutes=1)), {"kind": "fixed", "base_seconds": 60}),
        (
            Retry.exponential(1),
            {"kind": "exponential", "base_seconds": 1, "factor": 2, "jitter": True},
        ),
        (
            Retry.exponential(0.5, 3, max=timedelta(hours=1), jitter=False),
            {
                "kind": "exponential",
                "base_seconds": 0.5,
                "factor": 3,
                "max_seconds": 3600,
                "jitter": False,
            },
        ),
    ],
)
def test_sends_only_the_retry_options_that_apply(
    retry: Retry, options: dict[str, Any]
) -> None:
    assert retry.as_options() == options
    assert spawn_options_json({}, {"retry": retry}) == {"retry": options}


def test_a_retry_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Retry.fixed(5).base_seconds = 0  # type: ignore[misc]
    assert Retry.fixed(60) == Retry.fixed(timedelta(minutes=1))


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (Retry.fixed, (-1,)),
        (Retry.fixed, (None,)),
        (Retry.fixed, (math.nan,)),
        (Retry.exponential, (-1,)),
        (Retry.exponential, (None,)),
        (Retry.exponential, (1, 0.5)),
        (Retry.exponential, (1, math.inf)),
        (Retry.exponential, (1, math.nan)),
        (Retry.exponential, (1, True)),
        (Retry.exponential, (1, 2, -1)),
    ],
)
def test_refuses_invalid_retries(make: Any, arguments: Any) -> None:
    with pytest.raises(InvalidArgument):
        make(*arguments)


def test_sends_every_option_in_the_form_that_sql_expects() -> None:
    options = spawn_options_json(
        {},
        {
            "max_attempts": 3,
            "headers": {"trace": ["a", 1, None]},
            "idempotency_key": "order:7",
            "start_timeout": timedelta(hours=1),
            "execution_timeout": 90,
            "queue": "orders",
        },
    )
    assert json.loads(json.dumps(options)) == {
        "max_attempts": 3,
        "headers": {"trace": ["a", 1, None]},
        "idempotency_key": "order:7",
        "start_timeout": 3600.0,
        "execution_timeout": 90.0,
    }


def test_a_spawn_overrides_its_class() -> None:
    of_class = spawn_options_json(
        {}, {"max_attempts": 3, "start_timeout": 60, "headers": {"a": 1, "b": 1}}
    )
    given_here = {"max_attempts": 7, "start_timeout": None, "headers": {"b": 2}}
    overruled = spawn_options_json(of_class, given_here)
    assert overruled == {
        "max_attempts": 7,
        "start_timeout": None,
        "headers": {"a": 1, "b": 2},
    }
    assert of_class == {
        "max_attempts": 3,
        "start_timeout": 60,
        "headers": {"a": 1, "b": 1},
    }


def test_none_means_omitted_for_options_that_nothing_else_provides() -> None:
    nothing = {"idempotency_key": None, "queue": None}
    assert spawn_options_json({}, nothing) == {}


@pytest.mark.parametrize(
    "option", ["retry", "start_timeout", "execution_timeout", "identity"]
)
def test_sends_none_for_an_option_that_something_else_may_provide(option: str) -> None:
    """Omitted, it would take what workers have announced, or the parent's identity."""
    assert spawn_options_json({}, {option: None}) == {option: None}


def test_sends_unlimited_attempts_as_null() -> None:
    assert spawn_options_json({}, {"max_attempts": None}) == {"max_attempts": None}
    assert spawn_options_json({}, {}) == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [("max_attemps", "max_attempts"), ("header", "headers"), ("retries", "retry")],
)
def test_suggests_the_option_that_was_probably_meant(written: str, meant: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{written}.*did you mean {meant}"):
        spawn_options_json({}, {written: 1})


def test_lists_the_options_when_none_is_similar() -> None:
    with pytest.raises(InvalidArgument, match="max_attempts, retry, headers"):
        spawn_options_json({}, {"zzz": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 1.0},
        {"max_attempts": True},
        {"max_attempts": "3"},
        {"max_attempts": 2**31},
        {"max_attempts": 10**5000},
        {"retry": {"kind": "fixed"}},
        {"retry": 5},
        {"headers": ["a"]},
        {"headers": {"durable:trace": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"x" * 256: 1}},
        {"headers": {7: 1}},
        {"headers": {"at": datetime(2030, 1, 1)}},
        {"headers": {"x": math.nan}},
        {"headers": {"x": "\0"}},
        {"headers": {"\ud800": "x"}},
        {"idempotency_key": ""},
        {"idempotency_key": "x" * 256},
        {"start_timeout": -1},
        {"execution_timeout": math.inf},
        {"queue": ""},
        {"queue": "x" * 101},
    ],
)
def test_refuses_invalid_values_of_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        spawn_options_json({}, options)
