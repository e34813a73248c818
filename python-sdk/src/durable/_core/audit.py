"""What operators have done, as `list_audit` returns it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypedDict
from uuid import UUID

from durable._core.arguments import as_uuid, moment
from durable._core.reports import Actor, actor, checked_keys, filter_text
from durable._core.values import JSON
from durable.options import checked_identity

__all__ = ["AuditEntry", "AuditFilter", "audit_entry", "checked_audit_filter"]


class AuditFilter(TypedDict, total=False):
    """A filter for `list_audit`; an entry must match all given keys.

    action: the SQL function that was called, such as "retry_tasks".
    task_id: the task; calls for many tasks have none.
    user: the database role.
    identity: keys and values that the caller's identity contains.
    since, until: aware datetimes; `since` is inclusive, `until` exclusive.
    """

    action: str
    task_id: UUID | str
    user: str
    identity: Mapping[str, JSON]
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A call by which an operator changed something.

    `action` is the SQL function; `detail` has its arguments, without params, and of a
    call for many tasks, how many it changed.
    """

    audit_id: UUID
    at: datetime
    queue: str
    action: str
    task_id: UUID | None
    by: Actor
    detail: Mapping[str, JSON]


def audit_entry(row: tuple[Any, ...]) -> AuditEntry:
    """Return a row of `durable.list_audit` as a value."""
    *facts, by, detail = row
    queue = facts[2]
    values: Any = (*facts, actor(json.loads(by), queue), json.loads(detail or "{}"))
    return AuditEntry(*values)


def checked_audit_filter(given: Mapping[str, Any]) -> str:
    """Return a filter as `durable.list_audit` takes it, or raise InvalidArgument."""
    return json.dumps(checked_keys(given, _CHECKS))


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "action": filter_text,
    "task_id": lambda value: str(as_uuid(value)),
    "user": filter_text,
    "identity": checked_identity,
    "since": lambda value: moment(value, "since").isoformat(),
    "until": lambda value: moment(value, "until").isoformat(),
}
