"""What an application may do to its values on their way to the database, and back.

Not to be confused with types: those turn values into JSON text. A payload codec turns
that text into something else, encrypts it for instance, and back into the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["PayloadCodec", "Sealed"]


class Sealed(NamedTuple):
    """A value as a codec made it, and the mark by which it is known again.

    `mark` is printable text, by custom `codec/key`; it is stored readably, as is which
    task the value belongs to.
    """

    mark: str
    data: bytes


class PayloadCodec(Protocol):
    """Turns values, as JSON text in UTF-8, into bytes and back.

    One instance serves all threads of a process. `durable.encryption` has one that
    encrypts.
    """

    def seal(self, plain: bytes, /) -> Sealed:
        """Return a value as it is to be stored."""
        ...

    def open(self, sealed: Sealed, /) -> bytes:
        """Return what was sealed, byte for byte.

        Raises LookupError for a mark that it does not know, anything else for data
        that it does not accept.
        """
        ...

    def fingerprints(self, plain: bytes, /) -> Sequence[str]:
        """Return what tells the same value again, though it is sealed to other bytes.

        Each at most 255 bytes of printable text that give nothing away: one for every
        key that may still have been the first when an idempotency key was used, the
        present one first. Nothing, if equal values are sealed to equal bytes.
        """
        ...
