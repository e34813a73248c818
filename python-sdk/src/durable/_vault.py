"""Where values are sealed before they are stored, and opened after they were read.

A sealed value is one JSON object, `{"durable:codec": mark, "data": base64}`, and stands
where the plain one would; what has no mark is plain. So codecs can be changed, and old
values stay readable. What the database combines (a join's results, an error) may have
sealed values inside it, so they are looked for at every depth, but never inside what
was sealed. Where there is none, looking costs one search for a word.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Sequence
from typing import Any, Final

from durable._json import MAX_BYTES, UnsavableValue
from durable.codecs import PayloadCodec, Sealed
from durable.errors import UnreadablePayload

__all__ = ["PLAIN_VAULT", "Vault", "unsealed_error"]

_MARK: Final = "durable:codec"
_WORD: Final = f'"{_MARK}"'
_SEALED_TEXT: Final = f'{{"{_MARK}":'  # as it is written here, to the letter
_ENVELOPE: Final = {_MARK, "data"}
# What of an error says more than its class; the engine bounds errors to 256 KiB.
_SAYING: Final = ("message", "traceback", "args")
_LONGEST_ERROR: Final = 180_000
_LONGEST_END: Final = 2_000


class Vault:
    """An application's codecs: the first of them seals, all of them open."""

    __slots__ = ("_codecs", "_sealing")

    def __init__(self, codecs: Sequence[PayloadCodec] = ()) -> None:
        self._codecs = tuple(codecs)
        self._sealing = self._codecs[0] if self._codecs else None

    def sealed(self, text: str) -> str:
        """Return JSON text as it is to be stored.

        Raises UnsavableValue if that is too long, or if it would be taken for sealed.
        """
        if self._sealing is not None:
            return self._seal(self._sealing, text)
        if _WORD in text and _holds_envelope(json.loads(text)):
            raise UnsavableValue(
                f"an object of {_MARK!r} and 'data' cannot be saved:"
                " that is how sealed values look"
            )
        return text

    def opened(self, text: str) -> str:
        """Return JSON text as it was before it was sealed, in whole or in part.

        Raises UnreadablePayload if a codec or key for it is missing, or refuses it.
        """
        if _WORD not in text:
            return text
        value = json.loads(text)
        if _is_envelope(value):
            return self._open(value)
        if not _holds_envelope(value):
            return text
        return json.dumps(self._opened_inside(value))

    def sealed_error(self, text: str) -> str:
        """Return an error as it is to be stored: its class stays readable.

        Of one that would be too long as sealed, the end is kept.
        """
        if self._sealing is None and _WORD not in text:
            return text
        error = json.loads(text)
        if self._sealing is None:
            error.pop("args", None)  # which may look sealed
            return json.dumps(error)
        said = {key: error.pop(key) for key in _SAYING if key in error}
        if len(json.dumps(said)) > _LONGEST_ERROR:
            said.pop("args", None)
        if len(json.dumps(said)) > _LONGEST_ERROR:
            said = {key: str(value)[-_LONGEST_END:] for key, value in said.items()}
        sealed = json.loads(self._seal(self._sealing, json.dumps(said)))
        error["message"] = f"sealed by {sealed[_MARK]}"
        return json.dumps(error | {"sealed": sealed})

    def shown_error(self, error: dict[str, Any]) -> dict[str, Any]:
        """Return an error, to be shown; "sealed by …" if it cannot be opened."""
        with contextlib.suppress(UnreadablePayload):
            error = unsealed_error(self._opened_inside(error))
        return {key: value for key, value in error.items() if key != "sealed"}

    def sealed_text(self, text: str) -> str:
        """Return text as it is to be stored; plain, it never looks sealed."""
        if self._sealing is not None:
            return self._seal(self._sealing, json.dumps(text))
        return f" {text}" if text.startswith(_SEALED_TEXT) else text

    def shown_text(self, text: str) -> str:
        """Return text as it was, to be shown; "sealed by …" if it cannot be opened."""
        if not text.startswith(_SEALED_TEXT):
            return text
        try:
            return str(json.loads(self.opened(text)))
        except UnreadablePayload as error:
            return f"sealed by {error.mark}"

    def fingerprints(self, text: str) -> list[str]:
        """Return what tells these params again, however they were sealed."""
        value = json.loads(text, parse_float=_number)
        plain = json.dumps(value, sort_keys=True).encode()
        return [mine for codec in self._codecs for mine in codec.fingerprints(plain)]

    def _seal(self, codec: PayloadCodec, text: str) -> str:
        mark, data = codec.seal(text.encode())
        coded = base64.b64encode(data).decode()
        envelope = f'{{"{_MARK}":{json.dumps(mark)},"data":"{coded}"}}'
        if len(envelope) > MAX_BYTES:
            raise UnsavableValue(
                f"a value of {len(envelope):,} bytes, as {mark} seals it,"
                f" cannot be saved, only {MAX_BYTES:,}"
            )
        return envelope

    def _opened_inside(self, value: Any) -> Any:
        if _is_envelope(value):
            return json.loads(self._open(value))
        if isinstance(value, dict):
            return {key: self._opened_inside(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._opened_inside(item) for item in value]
        return value

    def _open(self, envelope: dict[str, str]) -> str:
        mark = envelope[_MARK]
        try:
            data = base64.b64decode(envelope["data"], validate=True)
        except binascii.Error as error:
            raise UnreadablePayload(mark, f"is no base64: {error}") from error
        for codec in self._codecs:
            try:
                return codec.open(Sealed(mark, data)).decode()
            except LookupError:
                continue
            except Exception as error:
                why = f"is refused by {type(codec).__name__}: {error!r}"
                raise UnreadablePayload(mark, why) from error
        raise UnreadablePayload(mark, "needs a codec or a key that is not here")


def unsealed_error(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded error, opened already, as it was before it was sealed."""
    said = recorded.get("sealed")
    return {**recorded, **said} if isinstance(said, dict) else recorded


def _number(text: str) -> float:
    """Return 1.0 as 1, which Postgres takes for the same."""
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


PLAIN_VAULT: Final = Vault()
