"""Payload codecs: transform stored values, to encrypt or compress them.

A value's type turns it into JSON text. A payload codec then turns that text into bytes,
and the bytes back into the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["PayloadCodec", "Sealed"]


class Sealed(NamedTuple):
    """A value encoded by a codec, and the mark that identifies the codec and key.

    `mark` is printable text, by convention `codec/key`. It is stored in clear text, as
    is the id of the task that the value belongs to.
    """

    mark: str
    data: bytes


class PayloadCodec(Protocol):
    """Turns values, as JSON text in UTF-8, into bytes and back.

    One instance serves all threads of a process. `durable.encryption` has a codec that
    encrypts.
    """

    def seal(self, plain: bytes, /) -> Sealed:
        """Encode a value for storage."""
        ...

    def open(self, sealed: Sealed, /) -> bytes:
        """Return exactly the bytes that were passed to `seal`.

        Raise LookupError for an unknown mark, any other exception for invalid data.
        """
        ...

    def fingerprints(self, plain: bytes, /) -> Sequence[str]:
        """Return fingerprints that are equal for equal values.

        The engine compares them when an idempotency key is used again, since equal
        values may be sealed to different bytes. Each is printable text of at most 255
        bytes that reveals nothing about the value. Return one for each key that may
        have been the first when the idempotency key was first used, the current key's
        first; none if equal values are sealed to equal bytes.
        """
        ...
