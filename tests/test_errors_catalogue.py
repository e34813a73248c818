"""The set of errors is closed: one SQLSTATE and one class each, in SQL and Python."""

from __future__ import annotations

import re

import psycopg
import pytest

import durable
from durable import DurableError, errors
from tests.support.processes import ROOT

# what an installation raises before the engine exists
INSTALLING = {"3F000", "42P06", "55000"}
# where the name of an outcome differs from the name of its class
CALLED = {"cancelled": "TaskCancelled"}


@pytest.fixture
def catalogue(db: psycopg.Connection) -> dict[str, tuple[str, str]]:
    """The database's catalogue: code, name and meaning."""
    rows = db.execute("select code, name, meaning from durable.errors()").fetchall()
    return {code: (name, meaning) for code, name, meaning in rows}


def test_has_a_class_for_every_code(catalogue: dict[str, tuple[str, str]]) -> None:
    assert catalogue.keys() == DurableError.by_code.keys()
    for code, (name, _) in catalogue.items():
        camel = "".join(word.capitalize() for word in name.split("_"))
        assert DurableError.by_code[code].__name__ == CALLED.get(name, camel)


def test_documents_every_code(catalogue: dict[str, tuple[str, str]]) -> None:
    for _, meaning in catalogue.values():
        assert meaning.endswith(".")
    assert list(catalogue) == sorted(catalogue)
    assert all(cls.__doc__ for cls in DurableError.by_code.values())


def test_uses_its_own_class_of_codes_and_those_of_postgres(
    catalogue: dict[str, tuple[str, str]],
) -> None:
    assert {code[:2] for code in catalogue} == {"WF", "22", "42"}
    assert len({cls.code for cls in DurableError.by_code.values()}) == len(catalogue)


def test_sql_raises_exactly_the_codes_of_the_catalogue(
    catalogue: dict[str, tuple[str, str]],
) -> None:
    raised = set()
    for file in (ROOT / "sql").rglob("*.sql"):
        raised |= set(re.findall(r"errcode = '(\w{5})'", file.read_text()))
    raised_by_the_sdk = {"WFVER"}
    assert raised | raised_by_the_sdk == catalogue.keys() | INSTALLING


def test_exports_every_error() -> None:
    public = set(errors.__all__) - {"from_database", "sqlstates"}
    assert public <= set(durable.__all__)
