"""What an application says of itself, whichever colour its client has."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias

from durable._connections import known_conninfo
from durable._names import check_queue_name, check_version
from durable._vault import Vault
from durable.codecs import PayloadCodec
from durable.registry import AnyTask, Registry

__all__ = ["Application", "Lifespan"]

VERSION_VARIABLE: Final = "DURABLE_APP_VERSION"

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Application:
    """Its queue, its tasks, and what each of its workers needs."""

    def __init__(
        self,
        conninfo: str | None,
        queue: str,
        tasks: Iterable[AnyTask],
        lifespan: Lifespan | None,
        *,
        prepare: bool,
        listen_conninfo: str = "",
        codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
        version: str | None = None,
        keep_logs: int | None = None,
    ) -> None:
        self._conninfo = conninfo
        self.listen_conninfo = listen_conninfo
        self.queue = check_queue_name(queue)
        self.registry = Registry(tasks)
        self.lifespan = lifespan
        self.prepare = prepare
        self.keep_logs = keep_logs
        self.logs_from = logging.INFO if keep_logs is None else keep_logs
        self.codecs = _listed(codec)
        self.vault = Vault(self.codecs)
        found = version if version is not None else os.environ.get(VERSION_VARIABLE)
        self.version = None if found is None else check_version(found)

    @property
    def conninfo(self) -> str:
        """Its database. Raises InvalidArgument if none was given."""
        return known_conninfo(self._conninfo)

    def stamped(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options of a spawn, with the version, if there is one."""
        return options if self.version is None else {"version": self.version, **options}


def _listed(
    codec: PayloadCodec | Sequence[PayloadCodec] | None,
) -> Sequence[PayloadCodec]:
    if codec is None:
        return ()
    return codec if isinstance(codec, Sequence) else (codec,)
