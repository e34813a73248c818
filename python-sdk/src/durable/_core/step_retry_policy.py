"""The retry policy of a step."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from durable._core.annotations import returns_awaitable
from durable._core.arguments import seconds
from durable.errors import InvalidArgument, NonRetryable
from durable.options import (
    checked_max_attempts,
    checked_non_retryable,
    unknown_option,
)
from durable.retry import Retry

_DEFAULT: Final = Retry.exponential(1, max=300)
_LONGEST: Final = 100 * 365.25 * 86_400


@dataclass(frozen=True, slots=True)
class StepRetryPolicy:
    """Checked `StepOptions`. Durations are in seconds."""

    max_attempts: int | None
    retry: Retry
    non_retryable: tuple[type[Exception], ...]
    retry_if: Callable[[Exception], bool] | None
    timeout: float | None

    @classmethod
    def of(
        cls, options: Mapping[str, Any], function: Callable[..., Any]
    ) -> StepRetryPolicy:
        """Check `StepOptions`; InvalidArgument if they are invalid."""
        for option in options:
            if option not in cls.__slots__:
                raise InvalidArgument(unknown_option(option, cls.__slots__))
        max_attempts = checked_max_attempts(options.get("max_attempts", 1))
        retry = options.get("retry") or _DEFAULT
        non_retryable = checked_non_retryable(options.get("non_retryable", ()))
        timeout = seconds(options.get("timeout"), "timeout")
        if not isinstance(retry, Retry):
            raise InvalidArgument(f"retry must be a Retry, not {retry!r}")
        if timeout is not None and not returns_awaitable(function):
            raise InvalidArgument(
                "a synchronous function cannot be stopped after a timeout",
                hint="Make it async, or give what it calls a timeout.",
            )
        return cls(max_attempts, retry, non_retryable, options.get("retry_if"), timeout)

    def again(self, error: Exception, failures: int) -> bool:
        """Whether to retry after this many failures, of which `error` is the last."""
        return (
            (self.max_attempts is None or failures < self.max_attempts)
            and self.retry.kind != "none"
            and not isinstance(error, (NonRetryable, *self.non_retryable))
            and (self.retry_if is None or bool(self.retry_if(error)))
        )

    def pause(self, failures: int) -> float:
        """Return the seconds until the next attempt, at most a hundred years."""
        return min(self.retry.delay(failures), _LONGEST)

    def bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its timeout applied, if there is one."""
        if self.timeout is None:
            return function
        return partial(_within, self.timeout, function)


async def _within(limit: float, function: Callable[..., Any], *args: Any) -> Any:
    async with asyncio.timeout(limit):
        result = function(*args)
        return await result if inspect.isawaitable(result) else result
