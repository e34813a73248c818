"""What a child has from its parent: headers, and who asked.

A header of the parent's gives way to one of the child's class, and that to one of its
own. Who asked is kept among the headers under a name that nobody else may use, so it
goes wherever they go: through every attempt, and to what is spawned anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from durable._requests import SpawnRequest

__all__ = ["IDENTITY", "RESERVED", "inherited"]

R = TypeVar("R")

RESERVED: Final = "durable:"
IDENTITY: Final = "durable:identity"


def inherited(
    request: SpawnRequest[R], parents: Mapping[str, Any], given: Mapping[str, Any]
) -> SpawnRequest[R]:
    """Return what is asked for with the parent's headers below its own.

    `parents` are all of them, also durable's own; `given` is what the spawn was told,
    where `headers=None` wants none, and `identity=None` nobody.
    """
    options = json.loads(request.options)
    if parents.get(IDENTITY) is not None and "identity" not in given:
        options["identity"] = parents[IDENTITY]
    if options.get("headers", {}) is not None:
        shared = {k: v for k, v in parents.items() if not k.startswith(RESERVED)}
        options["headers"] = {**shared, **options.get("headers", {})} or None
    return replace(request, options=json.dumps(options))
