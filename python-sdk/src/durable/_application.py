"""What an application says of itself, whichever colour its client has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from durable._names import check_queue_name
from durable._vault import Vault
from durable.codecs import PayloadCodec
from durable.registry import AnyTask, Registry

__all__ = ["Application", "Lifespan"]

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Application:
    """Its queue, its tasks, and what each of its workers needs."""

    def __init__(
        self,
        conninfo: str,
        queue: str,
        tasks: Iterable[AnyTask],
        lifespan: Lifespan | None,
        *,
        prepare: bool,
        codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
    ) -> None:
        self.conninfo = conninfo
        self.queue = check_queue_name(queue)
        self.registry = Registry(tasks)
        self.lifespan = lifespan
        self.prepare = prepare
        self.vault = Vault(_listed(codec))


def _listed(
    codec: PayloadCodec | Sequence[PayloadCodec] | None,
) -> Sequence[PayloadCodec]:
    if codec is None:
        return ()
    return codec if isinstance(codec, Sequence) else (codec,)
