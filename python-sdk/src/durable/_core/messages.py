"""Messages to tasks: recipient, topic, payload and dedup key."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable
from uuid import UUID

from durable._core.arguments import (
    as_uuid,
    check_dedup_key,
    check_queue_name,
    check_topic,
)
from durable._core.payloads import PayloadConverter
from durable._core.values import codec
from durable.errors import InvalidArgument


@runtime_checkable
class Addressed(Protocol):
    """What knows its task and its queue: a handle, a child, or a TaskInfo."""

    @property
    def queue(self) -> str:
        """The queue of the task."""

    @property
    def task_id(self) -> UUID:
        """The id of the task."""


Recipient: TypeAlias = Addressed | UUID | str


def queue_of(task: Recipient, queue: str | None, home: str) -> str:
    """Return the queue of a task: a handle's own, else `queue`, by default `home`.

    Raises InvalidArgument for another queue than a handle's own.
    """
    if not isinstance(task, Addressed):
        return home if queue is None else check_queue_name(queue)
    if queue not in {None, task.queue}:
        raise InvalidArgument(
            f"task {task.task_id} is in the queue {task.queue!r}, not in {queue!r}",
            hint="Leave `queue` out: a handle knows its own.",
        )
    return task.queue


def task_id_of(task: Recipient) -> UUID:
    """Return the id of a task; InvalidArgument if it is no uuid."""
    return task.task_id if isinstance(task, Addressed) else as_uuid(task)


class Message(NamedTuple):
    """The arguments of `durable.send_message`, with the payload as JSON text."""

    queue: str
    task_id: UUID
    topic: str
    payload: str
    dedup_key: str | None

    def encoded(self, payloads: PayloadConverter) -> Message:
        """Return the message with its payload encoded for storage."""
        return self._replace(payload=payloads.encode(self.payload))


def message(
    to: Recipient,
    queue: str,
    topic: str,
    payload: Any,
    *,
    dedup_key: str | None = None,
    as_type: Any = None,
) -> Message:
    """Return a message to a task of a queue.

    Raises InvalidArgument for an invalid id, topic or key, and Unsavable for a payload
    that cannot be serialized.
    """
    task_id = task_id_of(to)
    check_topic(topic)
    if dedup_key is not None:
        check_dedup_key(dedup_key)
    text = codec(as_type or type(payload)).dump(payload)
    return Message(queue, task_id, topic, text, dedup_key)
