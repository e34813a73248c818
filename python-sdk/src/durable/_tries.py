"""How often a step is tried before it has failed, and after what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from durable._time import seconds
from durable._worker.calls import is_async
from durable.errors import InvalidArgument, NonRetryable
from durable.options import (
    checked_max_attempts,
    checked_no_retry,
    unknown_option,
)
from durable.retry import Retry

__all__ = ["Tries"]

_DEFAULT: Final = Retry.exponential(1, max=300)
_LONGEST: Final = 100 * 365.25 * 86_400


@dataclass(frozen=True, slots=True)
class Tries:
    """`StepOptions`, checked. Durations are in seconds."""

    max_attempts: int | None
    retry: Retry
    no_retry: tuple[type[Exception], ...]
    retry_if: Callable[[Exception], bool] | None
    timeout: float | None

    @classmethod
    def of(cls, options: Mapping[str, Any], function: Callable[..., Any]) -> Tries:
        """Return what `StepOptions` say; InvalidArgument for what they cannot."""
        for option in options:
            if option not in cls.__slots__:
                raise InvalidArgument(unknown_option(option, cls.__slots__))
        tries = cls(
            checked_max_attempts(options.get("max_attempts", 1)),
            options.get("retry") or _DEFAULT,
            checked_no_retry(options.get("no_retry", ())),
            options.get("retry_if"),
            seconds(options.get("timeout"), "timeout"),
        )
        tries._check(function)
        return tries

    def _check(self, function: Callable[..., Any]) -> None:
        if not isinstance(self.retry, Retry):
            raise InvalidArgument(f"retry must be a Retry, not {self.retry!r}")
        if self.timeout is not None and not is_async(function):
            raise InvalidArgument(
                "a synchronous function cannot be stopped after a timeout",
                hint="Make it async, or give what it calls a timeout.",
            )

    def again(self, error: Exception, failures: int) -> bool:
        """Whether to try again after so many failures, of which this is the last."""
        return (
            (self.max_attempts is None or failures < self.max_attempts)
            and self.retry.kind != "none"
            and not isinstance(error, (NonRetryable, *self.no_retry))
            and (self.retry_if is None or bool(self.retry_if(error)))
        )

    def pause(self, failures: int) -> float:
        """Return the seconds until the next try; at most a hundred years."""
        return min(self.retry.delay(failures), _LONGEST)

    def bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, cancelled when it takes longer than it may."""
        if self.timeout is None:
            return function
        return partial(_within, self.timeout, function)


async def _within(limit: float, function: Callable[..., Any], *args: Any) -> Any:
    async with asyncio.timeout(limit):
        return await function(*args)
