"""Run the files of pgtap/ with pg_prove, each in a database of its own.

    python -m tests.support.pgtap /usr/lib/postgresql/15/bin [pgtap/spawn.sql ...]

Helpers, whose names begin with an underscore, are included by the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from durable.embedded import Postgres
from tests.support.databases import Databases
from tests.support.processes import ROOT

__all__: list[str] = []

PSQL = Path(__file__).with_name("psql-in-own-database")


def main(binaries: str, *chosen: str) -> int:
    """Start a throw-away server, prepare the template, run all files."""
    every = sorted((ROOT / "pgtap").rglob("[!_]*.sql"))
    files = chosen or [str(path.relative_to(ROOT)) for path in every]
    with Postgres.start(binaries=binaries, fast=True) as server:
        databases = Databases(server.conninfo(), "pgtap")
        databases.make_template("pgtap", "plpgsql_check")
        environ = os.environ | {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": str(server.home),
            "PGUSER": "postgres",
            "TEMPLATE": databases.template,
        }
        prove = ["pg_prove", "--jobs", "2", "--psql-bin", str(PSQL), *files]
        return subprocess.run(prove, env=environ, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
