"""The names people give, and the keys their checkpoints get.

A step's key is its name; everything else has a `$` in front: `$sleep:cool-off`, `$now`.
A repeat within one branch of a run is `#2`, `#3` and so on, in the order of the calls.
Two branches may not share a key: which of them came first would depend on timing, and
replay would hand one branch the other's values.
"""

from __future__ import annotations

import re
from typing import Final

from durable.errors import InvalidArgument

__all__ = [
    "Names",
    "check_dedup_key",
    "check_event_name",
    "check_key",
    "check_queue_name",
    "check_step_name",
    "check_task_name",
    "check_topic",
    "check_version",
    "default_task_name",
]

SHORT: Final = 100
LONG: Final = 255

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBERED = re.compile(r"#[0-9]+\Z")
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def check_queue_name(name: str) -> str:
    """Return the name; InvalidArgument unless it is 1-100 bytes, and printable."""
    return _check(name, "a queue's name", SHORT)


def check_task_name(name: str) -> str:
    """Return the name; InvalidArgument unless it is 1-100 bytes, and printable."""
    return _check(name, "a task's name", SHORT)


def check_event_name(name: str) -> str:
    """Return the name; InvalidArgument unless it is 1-255 bytes, and printable."""
    return _check(name, "an event's name", LONG)


def check_version(version: str) -> str:
    """Return the version; InvalidArgument unless it is 1-100 bytes, and printable."""
    return _check(version, "a version", SHORT)


def check_key(key: str) -> str:
    """Return the idempotency key; InvalidArgument as for an event's name."""
    return _check(key, "an idempotency key", LONG)


def check_topic(topic: str) -> str:
    """Return a message's topic; InvalidArgument as for an event's name."""
    return _check(topic, "a message's topic", LONG)


def check_dedup_key(key: str) -> str:
    """Return a message's key; InvalidArgument as for an event's name."""
    return _check(key, "a message's dedup_key", LONG)


def check_step_name(name: str, what: str = "a step's name") -> str:
    """Return the name of a step, sleep, spawn or join, if it can be one.

    InvalidArgument unless it is 1-255 bytes without control characters, does not begin
    with `$` and does not end in `#` and digits: those are durable's own.
    """
    _check(name, what, LONG)
    if name.startswith("$"):
        raise InvalidArgument(f"{what} cannot begin with $: {name!r}")
    if "#" in name and _NUMBERED.search(name):
        message = f"{what} cannot end in # and digits: {name!r}"
        hint = "Repeats are numbered for you; otherwise write for instance item:7."
        raise InvalidArgument(message, hint=hint)
    return name


def default_task_name(name: str) -> str:
    """Return a class's or a function's name in kebab case: HTTPFetch is http-fetch."""
    return _WORD_STARTS.sub("-", name.strip("_")).replace("_", "-").lower()


class Names:
    """The keys one run has given out so far."""

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken: dict[str, tuple[object, int]] = {}

    def take(self, kind: str, name: str, branch: object) -> str:
        """Return the checkpoint key of the call that is being made now.

        `kind` is empty for a step, otherwise what stands behind the `$`; `name` is
        empty where a call has none, as `now`; `branch` is the asyncio task that calls,
        or None in a synchronous task. Raises RuntimeError when another branch of the
        run has used the name.
        """
        key = name
        if kind:
            key = f"${kind}:{name}" if name else f"${kind}"
        owner, used = self._taken.get(key, (branch, 0))
        if owner is not branch:
            raise RuntimeError(
                f"{_described(kind, name)} is used by two concurrent branches of this "
                "run, and a replay could not tell them apart: give distinct names, or "
                'give each branch its own ctx.scope("…")'
            )
        self._taken[key] = (branch, used + 1)
        # an event may be called "issue#2", which is not the second "issue"
        if used or ("#" in key and _NUMBERED.search(key)):
            return f"{key}#{used + 1}"
        return key


def _described(kind: str, name: str) -> str:
    return f"the {kind or 'step'} name {name!r}" if name else f"{kind}()"


def _check(name: object, what: str, limit: int) -> str:
    if not isinstance(name, str):
        raise InvalidArgument(f"{what} must be a str, not {type(name).__name__}")
    if name.isspace() or not name:
        raise InvalidArgument(f"{what} is empty")
    if name.isascii() and name.isprintable() and len(name) <= limit:
        return name
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} has a lone surrogate: {name!r}") from error
    if size > limit:
        raise InvalidArgument(f"{what} is {size} bytes long, and may be {limit}")
    if _CONTROL.search(name):
        raise InvalidArgument(f"{what} has a control character: {name!r}")
    return name
