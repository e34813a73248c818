"""Describe an installed engine as text, for comparison and review.

python -m tests.support.schema      accepts the schema as it is into tests/golden
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from durable.embedded import Postgres
from tests.support.databases import install

__all__ = ["GOLDEN", "bodies", "described"]

GOLDEN = Path(__file__).parents[1] / "golden" / "schema.txt"

DESCRIBE = Path(__file__).with_suffix(".sql").read_text()
BODIES = """
select proname || E'\n' || pg_get_functiondef(pg_proc.oid)
from pg_proc where pronamespace = 'durable'::regnamespace
union all
select relname || E'\n' || pg_get_viewdef(oid)
from pg_class where relnamespace = 'durable'::regnamespace and relkind = 'v'
order by 1
"""


def described(session: psycopg.Connection) -> str:
    """Return the schema line by line, the same on every version of Postgres."""
    return "".join(f"{line}\n" for (line,) in session.execute(DESCRIBE).fetchall())


def bodies(session: psycopg.Connection) -> list[str]:
    """Return functions and views as this server prints them."""
    return [body for (body,) in session.execute(BODIES).fetchall()]


def main() -> None:
    """Write the golden schema."""
    with (
        Postgres.start(fast=True) as server,
        psycopg.connect(server.conninfo(), autocommit=True) as session,
    ):
        install(session)
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(described(session))


if __name__ == "__main__":
    main()
