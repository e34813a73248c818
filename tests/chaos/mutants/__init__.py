"""Bugs planted into the engine, to prove that the tests would find them.

A mutant is a change of the text of one file of sql/. It is applied to a copy of the
database, and the judges look for a problem; the one that must find it is named.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from tests.support.processes import ROOT

__all__ = ["Mutant", "mutated", "plant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is broken in a file, by putting one text in the place of another.

    killer: "model", a file of pgtap/, or a test of one of the files in judges.RACES.
    """

    breaks: str
    file: str
    old: str
    new: str
    killer: str = "model"


def mutated(mutant: Mutant) -> str:
    """Return the file's text with the bug in it. Its place is found by `old`."""
    text = (ROOT / "sql" / mutant.file).read_text("utf-8")
    found = text.count(mutant.old)
    if found != 1:
        raise LookupError(
            f"{mutant.breaks}: {mutant.old!r} stands {found} times in {mutant.file};"
            " the mutant has to follow its source"
        )
    return text.replace(mutant.old, mutant.new)


def plant(connection: psycopg.Connection, mutant: Mutant) -> None:
    """Put the bug into a database that has the engine."""
    connection.execute(mutated(mutant))
