"""Apply payload codecs: seal values before they are stored, open them when read.

A sealed value is one JSON object, `{"durable:codec": mark, "data": base64}`, in place
of the plain value; a value without a mark is plain. So codecs can be changed, and old
values stay readable. Values that the engine combines (a join's results, an error) may
contain sealed ones, so these are searched for at every depth, but not inside an opened
value. A value without sealed parts costs one substring search.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, Final

from durable._core.values import MAX_BYTES, UnsavableValue
from durable.codecs import PayloadCodec, Sealed
from durable.errors import UnreadablePayload

_MARK: Final = "durable:codec"
_WORD: Final = f'"{_MARK}"'
_SEALED_TEXT: Final = f'{{"{_MARK}":'  # the exact beginning that `_encode` writes
_ENVELOPE: Final = {_MARK, "data"}
# The fields of an error that are sealed; the engine limits errors to 256 KiB.
_SENSITIVE: Final = ("message", "traceback", "lost", "args", "more")
_CONTENT: Final = ("args", "more")  # from which an exception is restored
_LONGEST_ERROR: Final = 180_000
_LONGEST_END: Final = 2_000


class PayloadConverter:
    """An application's codecs: the first one seals, all of them open."""

    __slots__ = ("_codecs", "_sealing")

    def __init__(self, codecs: Sequence[PayloadCodec] = ()) -> None:
        self._codecs = tuple(codecs)
        self._sealing = self._codecs[0] if self._codecs else None

    def encode(self, text: str) -> str:
        """Return JSON text encoded for storage.

        Raises UnsavableValue if it is too long, or if it looks like a sealed value.
        """
        if self._sealing is not None:
            return self._encode(self._sealing, text)
        if _WORD in text and _holds_envelope(json.loads(text)):
            raise UnsavableValue(
                f"an object of {_MARK!r} and 'data' cannot be saved:"
                " that is how sealed values look"
            )
        return text

    def decode(self, text: str) -> str:
        """Return stored JSON text with all sealed values in it opened.

        Raises UnreadablePayload if a codec or key is missing, or rejects the data.
        """
        if _WORD not in text:
            return text
        value = json.loads(text)
        if _is_envelope(value):
            return self._decode(value)
        if not _holds_envelope(value):
            return text
        return json.dumps(self._decode_inside(value))

    def encode_error(self, text: str) -> str:
        """Return an error encoded for storage; its class stays readable.

        An error that would be too long when sealed is truncated to its end.
        """
        if self._sealing is None and _WORD not in text:
            return text
        error = json.loads(text)
        if self._sealing is None:
            for key in _CONTENT:  # may look like a sealed value
                error.pop(key, None)
            return json.dumps(error)
        secret = {key: error.pop(key) for key in _SENSITIVE if key in error}
        if len(json.dumps(secret)) > _LONGEST_ERROR:
            for key in _CONTENT:
                secret.pop(key, None)
        if len(json.dumps(secret)) > _LONGEST_ERROR:
            secret = {key: str(value)[-_LONGEST_END:] for key, value in secret.items()}
        sealed = json.loads(self._encode(self._sealing, json.dumps(secret)))
        error["message"] = f"sealed by {sealed[_MARK]}"
        return json.dumps(error | {"sealed": sealed})

    def decode_error(self, error: dict[str, Any]) -> dict[str, Any]:
        """Return an error for display; "sealed by …" if it cannot be opened."""
        with contextlib.suppress(UnreadablePayload):
            error = decoded_error(self._decode_inside(error))
        return {key: value for key, value in error.items() if key != "sealed"}

    def encode_text(self, text: str) -> str:
        """Return text encoded for storage; plain text never looks sealed."""
        if self._sealing is not None:
            return self._encode(self._sealing, json.dumps(text))
        return f" {text}" if text.startswith(_SEALED_TEXT) else text

    def decode_text(self, text: str) -> str:
        """Return text for display; "sealed by …" if it cannot be opened."""
        if not text.startswith(_SEALED_TEXT):
            return text
        try:
            return str(json.loads(self.decode(text)))
        except UnreadablePayload as error:
            return f"sealed by {error.mark}"

    def fingerprints(self, text: str) -> list[str]:
        """Return fingerprints of params, which do not depend on how they are sealed."""
        value = json.loads(text, parse_float=_number)
        plain = json.dumps(value, sort_keys=True).encode()
        found = [codec.fingerprints(plain) for codec in self._codecs]
        return list(itertools.chain.from_iterable(found))

    def _encode(self, codec: PayloadCodec, text: str) -> str:
        mark, data = codec.seal(text.encode())
        coded = base64.b64encode(data).decode()
        envelope = f'{{"{_MARK}":{json.dumps(mark)},"data":"{coded}"}}'
        if len(envelope) > MAX_BYTES:
            raise UnsavableValue(
                f"a value of {len(envelope):,} bytes, as {mark} seals it,"
                f" cannot be saved, only {MAX_BYTES:,}"
            )
        return envelope

    def _decode_inside(self, value: Any) -> Any:
        if _is_envelope(value):
            return json.loads(self._decode(value))
        if isinstance(value, dict):
            return {key: self._decode_inside(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._decode_inside(item) for item in value]
        return value

    def _decode(self, envelope: dict[str, str]) -> str:
        mark = envelope[_MARK]
        try:
            data = base64.b64decode(envelope["data"], validate=True)
        except binascii.Error as error:
            raise UnreadablePayload(mark, f"is not base64: {error}") from error
        for codec in self._codecs:
            try:
                return codec.open(Sealed(mark, data)).decode()
            except LookupError:
                continue
            except Exception as error:
                why = f"was rejected by {type(codec).__name__}: {error!r}"
                raise UnreadablePayload(mark, why) from error
        raise UnreadablePayload(mark, "needs a codec or a key that is missing here")


def decoded_error(recorded: dict[str, Any]) -> dict[str, Any]:
    """Merge the opened fields of a recorded error into it."""
    opened = recorded.get("sealed")
    return {**recorded, **opened} if isinstance(opened, dict) else recorded


def _number(text: str) -> float:
    """Return 1.0 as 1, which Postgres considers equal."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _is_envelope(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _ENVELOPE
        and isinstance(value[_MARK], str)
        and isinstance(value["data"], str)
    )


def _holds_envelope(value: Any) -> bool:
    if _is_envelope(value):
        return True
    if isinstance(value, dict):
        return any(map(_holds_envelope, value.values()))
    return isinstance(value, list) and any(map(_holds_envelope, value))
