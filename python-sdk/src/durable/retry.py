"""Retry policies: the delay between a failed attempt and the next one."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from durable._core.arguments import LONGEST, required_seconds, seconds
from durable.errors import InvalidArgument

__all__ = ["Retry"]

MAX_FACTOR: Final = 1e10


@dataclass(frozen=True, slots=True)
class Retry:
    """The delay between attempts. `max_attempts` limits their number.

        Retry.none()
        Retry.fixed(timedelta(minutes=1))
        Retry.exponential(1, max=timedelta(hours=1))

    Create one with these three methods; the fields hold durations in seconds.
    """

    kind: Literal["none", "fixed", "exponential"]
    base_seconds: float | None = None
    factor: float | None = None
    max_seconds: float | None = None
    jitter: bool | None = None

    @classmethod
    def none(cls) -> Retry:
        """Do not retry: the first failure is final."""
        return cls("none")

    @classmethod
    def fixed(cls, delay: timedelta | float) -> Retry:
        """Wait the same time before every further attempt.

        Raises InvalidArgument for a delay that is negative or not finite.
        """
        return cls("fixed", required_seconds(delay, "delay"))

    @classmethod
    def exponential(
        cls,
        base: timedelta | float,
        factor: float = 2,
        max: timedelta | float | None = None,  # noqa: A002 - the word people look for
        *,
        jitter: bool = True,
    ) -> Retry:
        """Wait `base` before the second attempt, then `factor` times longer each time.

        Never longer than `max`. Jitter shortens each delay at random, by up to half, so
        that tasks which failed together do not retry together. Raises InvalidArgument
        for a duration that is negative or not finite, and for a factor below 1.
        """
        if isinstance(factor, bool) or not 1 <= factor <= MAX_FACTOR:
            raise InvalidArgument(f"factor must be a number from 1 to {MAX_FACTOR:g}")
        first, most = required_seconds(base, "base"), seconds(max, "max")
        return cls("exponential", first, factor, most, bool(jitter))

    def delay(self, failures: int) -> float:
        """Return the delay in seconds after this many failures, with jitter if set."""
        base, factor = self.base_seconds or 0.0, self.factor or 2.0
        if self.kind != "exponential":
            return base
        # the exponent is capped, so that no number of failures overflows
        growth = math.exp(min(math.log(factor) * (failures - 1), 60))
        most = LONGEST if self.max_seconds is None else self.max_seconds
        longest = min(base * growth, most)
        return longest * random.uniform(0.5, 1) if self.jitter else longest  # noqa: S311 - no secret

    def as_options(self) -> dict[str, Any]:
        """Return the policy as `durable.spawn` takes it: the keys that apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}
