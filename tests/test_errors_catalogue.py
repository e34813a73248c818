"""durable has one closed set of errors: one SQLSTATE, one class, in both languages."""

from __future__ import annotations

import re

import psycopg
import pytest

import durable
from durable import DurableError, errors
from tests.support.processes import ROOT

# where an outcome of the database has another name than the class that means it
CALLED = {"cancelled": "TaskCancelled"}


@pytest.fixture
def catalogue(db: psycopg.Connection) -> dict[str, tuple[str, str]]:
    """What the database says: code, name and meaning."""
    rows = db.execute("select code, name, meaning from durable.errors()").fetchall()
    return {code: (name, meaning) for code, name, meaning in rows}


def test_has_a_class_for_every_code(catalogue: dict[str, tuple[str, str]]) -> None:
    assert catalogue.keys() == DurableError.by_code.keys()
    for code, (name, _) in catalogue.items():
        camel = "".join(word.capitalize() for word in name.split("_"))
        assert DurableError.by_code[code].__name__ == CALLED.get(name, camel)


def test_says_what_every_code_means(catalogue: dict[str, tuple[str, str]]) -> None:
    for _, meaning in catalogue.values():
        assert meaning.endswith(".")
    assert list(catalogue) == sorted(catalogue)
    assert all(cls.__doc__ for cls in DurableError.by_code.values())


def test_keeps_to_a_class_of_its_own_and_what_postgres_has_a_code_for(
    catalogue: dict[str, tuple[str, str]],
) -> None:
    assert {code[:2] for code in catalogue} == {"WF", "22", "42"}
    assert len({cls.code for cls in DurableError.by_code.values()}) == len(catalogue)


def test_raises_in_sql_what_is_in_the_catalogue_and_nothing_else(
    catalogue: dict[str, tuple[str, str]],
) -> None:
    raised = set()
    for file in (ROOT / "sql").rglob("*.sql"):
        raised |= set(re.findall(r"errcode = '(\w{5})'", file.read_text()))
    raised_by_the_sdk = {"WFVER"}
    assert raised | raised_by_the_sdk == catalogue.keys()


def test_exports_every_error() -> None:
    public = set(errors.__all__) - {"from_database", "sqlstates"}
    assert public <= set(durable.__all__)
