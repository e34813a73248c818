"""durable accepts addresses in common forms, and never prints a password."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from durable import AsyncDurable, Durable, InvalidArgument, cli
from durable._core import sql
from durable._db.conninfo import checked_conninfo, without_passwords
from durable.testing._dsn import with_dbname

HUNTER = "hunter2"

READ = [
    ("postgres://u@h/d", "postgresql://u@h/d"),
    ("postgresql+psycopg://u:p@h:1/d", "postgresql://u:p@h:1/d"),
    ("postgresql+psycopg_async://u:p@h:1/d", "postgresql://u:p@h:1/d"),
    ("postgresql+psycopg2://u:p@/d?host=/tmp", "postgresql://u:p@/d?host=/tmp"),
    ("postgres+asyncpg://u:p@h/d", "postgres://u:p@h/d"),
    ("POSTGRESQL+ASYNCPG://h/d", "postgresql://h/d"),
    ("postgresql+asyncpg://h/d?ssl=require", "postgresql://h/d?sslmode=require"),
    ("postgresql://h/d?ssl=verify-full", "postgresql://h/d?sslmode=verify-full"),
    ("postgresql://h/d?ssl=true", "postgresql://h/d?sslmode=require"),
    (
        "postgresql+asyncpg://h/d?timeout=5&statement_cache_size=0&application_name=a",
        "postgresql://h/d?connect_timeout=5&application_name=a",
    ),
    ("postgresql+asyncpg://u:p%40@h1:1,h2:2/d", "postgresql://u:p%40@h1:1,h2:2/d"),
    ("postgresql://u:p?q@h/d", "postgresql://u:p%3Fq@h/d"),
    ("postgresql://u:p:q@[::1]:5/d?application_name=a@b", None),
    ("host=h password='a b' dbname=d", None),
    ("", None),
]
# Addresses that cannot be parsed; each contains the secret, whole or in two parts.
UNREADABLE = [
    f"postgresql://shop:{HUNTER}%zz@h/d",
    f"postgresql+psycopg://shop:{HUNTER}%@h/d",
    f"postgresql://shop:100%{HUNTER}@h/d",
    f"postgresql://shop:{HUNTER}%00@h/d",
    f"postgresql://shop:{HUNTER}@{HUNTER}@h/d",
    f"postgresql://shop:{HUNTER}/{HUNTER}@h/d",
    f"postgresql://shop:1/{HUNTER}@h/d",
    f"postgresql://h:{HUNTER}/d",
    f"postgresql://h/d?password={HUNTER}&{HUNTER}",
    f"postgresql://h/d?password={HUNTER}&{HUNTER}=1",
    f"postgresql://h/d?sslpassword={HUNTER}&nonsense={HUNTER}",
    f"mysql://shop:{HUNTER}@h/d",
    f"host=h password={HUNTER} {HUNTER}",
    f"host=h password='{HUNTER}",
    f"host=h port={HUNTER}",
    f"shop:{HUNTER}@h/d",
]


@pytest.mark.parametrize(("address", "meant"), READ)
def test_reads(address: str, meant: str | None) -> None:
    found = conninfo_to_dict(checked_conninfo(address))
    assert found == conninfo_to_dict(address if meant is None else meant)


async def test_connects_to_an_address_that_names_a_driver(dsn: str) -> None:
    for driver in ("psycopg", "psycopg_async", "psycopg2", "asyncpg"):
        address = dsn.replace("postgresql://", f"postgresql+{driver}://", 1)
        async with AsyncDurable(address, listen_url=address) as app:
            assert await app.list_queues() == ["default"]
            async with app.worker() as worker:
                assert await worker.drain() == 0


def test_finds_an_address_with_a_driver_in_the_environment(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = dsn.replace("postgresql://", "postgresql+psycopg://", 1)
    monkeypatch.setenv("DURABLE_DATABASE_URL", address)
    with Durable() as client:
        assert client.list_queues() == ["default"]
    run_command(monkeypatch, "queues")
    assert capsys.readouterr().out == "default\n"


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["durable", *arguments])
    # The command replaces it.
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    try:
        cli.main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


MAKE: list[Callable[[str], Any]] = [
    AsyncDurable,
    Durable,
    lambda address: Durable("dbname=x", listen_url=address),
    lambda address: AsyncDurable(AsyncConnectionPool(address, open=False)),
    lambda address: with_dbname(address, "other"),
]


@pytest.mark.parametrize("address", UNREADABLE)
def test_prints_nothing_of_an_address_that_it_cannot_parse(address: str) -> None:
    for make in MAKE:
        with pytest.raises(InvalidArgument) as refused:
            make(address)
        assert_tells_no_secret(refused.value)


def assert_tells_no_secret(error: BaseException | None) -> None:
    """Check all output, and everything an exception keeps without printing it."""
    while error is not None:
        printed = "".join(traceback.format_exception(error, chain=False))
        for text in (printed, repr(error), str(error.args)):
            assert HUNTER not in text
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql+psycopg://shop:{HUNTER}@127.0.0.1:1/d",
        f"postgresql://shop@127.0.0.1:1/d?password={HUNTER}&sslpassword={HUNTER}",
        f"host=127.0.0.1 port=1 user=shop password={HUNTER}",
        f"postgresql://shop:%68unter2@127.0.0.1:1/{HUNTER[:-1]}",
    ],
)
async def test_prints_no_password_when_it_cannot_connect(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = AsyncDurable(address)
    with caplog.at_level(logging.DEBUG), pytest.raises(psycopg.OperationalError) as out:
        await app._database.fetch(sql.version(), within=0.2)
    assert_tells_no_secret(out.value)
    assert HUNTER not in caplog.text
    assert HUNTER not in repr(app) + repr(app._database) + repr(app._application)
    await app.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "--dsn"],
        ["migrate", "--dsn"],
        ["migrate"],
        ["stats"],
        ["worker"],
        ["spawn", "default", "x", "--params"],
        ["result", "default"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_prints_no_password_on_the_command_line(
    arguments: list[str],
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even of an address in the wrong position."""
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    for address in (f"postgresql+psycopg://shop:{HUNTER}@h/d", *UNREADABLE[:6]):
        assert run_command(monkeypatch, *arguments, address)
        printed = capsys.readouterr()
        assert printed.err
        assert HUNTER not in printed.out + printed.err


def test_removes_passwords_from_text() -> None:
    for text in UNREADABLE[:7]:
        assert HUNTER not in without_passwords(f"no queue {text!r}, and {text} more")
    assert without_passwords("host=h password=x dbname=d") == (
        "host=h password=*** dbname=d"
    )
    assert without_passwords("see https://example.org/a for more") == (
        "see https://example.org/a for more"
    )
