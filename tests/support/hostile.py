"""Texts that break code written for ordinary ones.

Postgres can store `TEXTS`, but not `UNKEEPABLE`; `any_text` makes more of the first.
"""

from __future__ import annotations

from random import Random
from typing import Final

__all__ = ["TEXTS", "UNKEEPABLE", "any_text", "is_name"]

_DROP: Final = "'; drop schema durable cascade; --"

TEXTS: Final = (
    # quoting
    *("'", '"', "''", "\\", "\\'", "$$", "$1", "%", "%s %L %I", "{}", "{0}", ":a", "?"),
    *(_DROP, f"\\{_DROP}", f"$${_DROP}$$", "/*", "--", "E'\\x'", "U&'\\0041'", "null"),
    *(
        '{"a": 1}',
        '"json"',
        "[]",
        "__proto__",
        "(,)",
        '("a",)',
        "{a,b}",
        "*",
        "_",
        "%_",
    ),
    # whitespace and invisible characters
    *(
        "",
        " ",
        "   ",
        " a",
        "a ",
        "\t",
        "a\tb",
        "a\nb",
        "\r\n",
        "\x01",
        "a\x1b[31m",
        "\x7f",
    ),
    *("\x85", "\xa0", "\u3000", "\u2028", "\u200b", "\ufeff", "a\u200db", "\u00ad"),
    # direction, composition, planes
    *(
        "\u202eabc",
        "\u2066x\u2069",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "\u0131",
        "ﬁ",
        "Å",
        "\u212b",
    ),
    *(
        "👩\u200d👩\u200d👧",
        "🏳\ufe0f\u200d🌈",
        "\U0010ffff",
        "\ufffe",
        "\ud7ff",
        "名前",
    ),
    "a" + "\u0301" * 100,
    # text with a meaning for durable
    *(
        "$",
        "$now",
        "$event:a",
        "a#2",
        "#",
        "default",
        "work",
        "none",
        "public",
        "postgres",
    ),
    # around the limits
    *("x" * size for size in (99, 100, 101, 254, 255, 256, 511, 512, 513)),
    *("é" * size for size in (50, 51, 127, 128, 256, 257, 500, 501)),
    *("🐘" * size for size in (25, 26, 63, 64, 128, 129, 250, 251)),
    *("x" * 1000, "x" * 1001, "x" * 8001, "é" * 1_000_000),
)

UNKEEPABLE: Final = (
    *("\0", "a\0b", "\\\0", "\0'; --", "x" * 90 + "\0"),
    *("\ud800", "a\udfff", "\udc00\ud800", "x\ud83d", "\0\ud800"),
)

_ALPHABETS: Final = (
    "'\"\\$%;-/*{}[]()",
    "abcXYZ019 ",
    "\t\n\r\x01\x1b\x7f",
    "éßİıſﬁ\u0301\u0300",
    "\u202e\u2066\u200b\u200d\ufeff\u2028\x85\xa0",
    "🐘👩🏳\U0010ffff\U000e0001",
)


def any_text(random: Random) -> str:
    """Return a text of one kind or of all, short or about as long as names may be."""
    alphabet = random.choice([*_ALPHABETS, "".join(_ALPHABETS)])
    size = random.choice([1, 2, 5, 20, 50, 100, 128, 255, 256, 512])
    return "".join(random.choices(alphabet, k=size))


def is_name(text: str, limit: int) -> bool:
    """Whether a text may be a name of so many bytes: the rule, implemented again."""
    return (
        text.strip(" ") != ""
        and len(text.encode()) <= limit
        and not any(character < " " or character == "\x7f" for character in text)
    )
