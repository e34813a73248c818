"""A message: to whom it goes, what it is about, and what it says."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable
from uuid import UUID

from durable._ids import as_uuid
from durable._names import check_dedup_key, check_queue_name, check_topic
from durable._values import codec
from durable._vault import Vault

__all__ = ["Addressed", "Message", "Recipient", "message"]


@runtime_checkable
class Addressed(Protocol):
    """What stands for a task: a handle, or a child's."""

    @property
    def queue(self) -> str:
        """The queue it belongs to."""

    @property
    def task_id(self) -> UUID:
        """Its id."""


Recipient: TypeAlias = Addressed | UUID | str


class Message(NamedTuple):
    """What `durable.send_message` takes, the payload as JSON."""

    queue: str
    task_id: UUID
    topic: str
    payload: str
    dedup_key: str | None

    def sealed(self, vault: Vault) -> Message:
        """Return it with its payload as it is to be stored."""
        return self._replace(payload=vault.sealed(self.payload))


def message(
    to: Recipient,
    queue: str,
    topic: str,
    payload: Any,
    *,
    dedup_key: str | None = None,
    as_type: Any = None,
) -> Message:
    """Return a message to a task, which is in `queue` if it is given by its id.

    Raises InvalidArgument for what is no task's id, topic or key, and what pydantic
    raises for a payload that it cannot serialise.
    """
    if isinstance(to, Addressed):
        queue, task_id = to.queue, to.task_id
    else:
        queue, task_id = check_queue_name(queue), as_uuid(to)
    check_topic(topic)
    if dedup_key is not None:
        check_dedup_key(dedup_key)
    text = codec(as_type or type(payload)).dump(payload)
    return Message(queue, task_id, topic, text, dedup_key)
