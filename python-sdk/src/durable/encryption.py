"""A payload codec that encrypts, with keys that can be rotated.

    app = AsyncDurable(codec=AESGCMCodec({"2026-11": key}))

Needs the package `cryptography`: `pip install 'durable-postgres[encryption]'`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from typing import Final

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError as error:
    raise ImportError(
        "durable.encryption needs cryptography: "
        "pip install 'durable-postgres[encryption]'"
    ) from error

from durable.codecs import Sealed
from durable.errors import InvalidArgument

__all__ = ["AESGCMCodec"]

_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_PREFIX: Final = "aes-gcm/"
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,50}")


class AESGCMCodec:
    """Authenticated encryption with AES-256 in Galois/Counter Mode.

    `keys` maps names to keys of 32 bytes; the name is stored beside each encrypted
    value. The first key encrypts, all keys decrypt: to rotate, put a new key in front,
    and remove the old one once no stored value uses it. Each value has its own random
    nonce, so a key may encrypt four thousand million values. The place where a value is
    stored is not authenticated, since values are copied: a result to the parent that
    joins the task, params to a fork. Raises InvalidArgument for an invalid key.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise InvalidArgument(
                "there is no key", hint="AESGCMCodec.generate_key() makes one."
            )
        for name, key in keys.items():
            _check_key(name, key)
        self._first = next(iter(keys))
        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        self._fingerprint_keys = {
            name: hmac.digest(key, b"durable fingerprint of params", hashlib.sha256)
            for name, key in keys.items()
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with keys {', '.join(self._ciphers)}>"

    @staticmethod
    def generate_key() -> bytes:
        """Return a new random key. Store it apart from the database's backups."""
        return AESGCM.generate_key(_KEY_BYTES * 8)

    def seal(self, plain: bytes, /) -> Sealed:
        """Encrypt with the first key."""
        mark = _PREFIX + self._first
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._first]
        return Sealed(mark, nonce + cipher.encrypt(nonce, plain, mark.encode()))

    def open(self, sealed: Sealed, /) -> bytes:
        """Decrypt with the key that the mark names; LookupError without that key."""
        name = sealed.mark.removeprefix(_PREFIX)
        if name == sealed.mark:
            raise LookupError(sealed.mark)
        nonce, data = sealed.data[:_NONCE_BYTES], sealed.data[_NONCE_BYTES:]
        try:
            return self._ciphers[name].decrypt(nonce, data, sealed.mark.encode())
        except InvalidTag:
            raise ValueError(
                f"it was changed, or encrypted with another key than this {name}"
            ) from None

    def fingerprints(self, plain: bytes, /) -> list[str]:
        """Return a keyed hash under each of the keys."""
        return [
            f"{_PREFIX}{name}:{_digest(key, plain)}"
            for name, key in self._fingerprint_keys.items()
        ]


def _digest(key: bytes, plain: bytes) -> str:
    return base64.b64encode(hmac.digest(key, plain, hashlib.sha256)).decode()


def _check_key(name: object, key: object) -> None:
    if not isinstance(name, str) or not _KEY_NAME.fullmatch(name):
        raise InvalidArgument(
            f"a key's name is {name!r}",
            hint="Pass 1 to 50 letters, digits, dots, hyphens and underscores.",
        )
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        raise InvalidArgument(
            f"the key {name!r} is not {_KEY_BYTES} bytes",
            hint="AESGCMCodec.generate_key() makes one.",
        )
