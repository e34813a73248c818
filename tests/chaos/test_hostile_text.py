"""Any text is returned byte for byte, or refused at once.

Every argument that is text, from SQL and through the SDK. A refusal is one typed error,
its rule is known beforehand, and nothing has been written then.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
import pytest

from durable import (
    Durable,
    InvalidArgument,
    StepFailed,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.claims import count_claims
from tests.support.hostile import TEXTS, UNKEEPABLE, any_text, is_name
from tests.support.survival import Share, Survived
from tests.support.working import outcome, working

KEPT = "hostile texts, kept byte for byte"
REFUSED = "hostile texts, refused before anything was written"
ANY = 16 * 1024 * 1024

EVERYTHING = """
select md5(string_agg(line, '' order by line)) from (
  select tasks::text from durable.tasks
  union all select checkpoints::text from durable.checkpoints
  union all select events::text from durable.events
  union all select waits::text from durable.waits
  union all select idempotency_keys::text from durable.idempotency_keys
  union all select unique_keys::text from durable.unique_keys
  union all select mailboxes::text from durable.mailboxes
  union all select messages::text from durable.messages
  union all select message_keys::text from durable.message_keys
  union all select task_values::text from durable.task_values
  union all select stream_entries::text from durable.stream_entries
  union all select log_lines::text from durable.log_lines
  union all select queues::text from durable.queues
) as lines (line)
"""


def texts(share: Share, random: Random) -> list[str]:
    """Return the texts to try: all known troublemakers, and some random ones."""
    number = share(quick=30, long=1000)
    return [*TEXTS, *(any_text(random) for _ in range(number))]


# -- from SQL --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text is passed: `%(text)s` in a call, and a query that finds it again."""

    call: str
    found: str
    limit: int = ANY
    is_free: bool = False  # it may have any character, be empty or blank

    def takes(self, text: str) -> bool:
        """Whether the text must be stored, else refused."""
        if self.is_free:
            return len(text.encode()) <= self.limit
        return is_name(text, self.limit)


SPAWNED = "select {0} from durable.tasks where state = 'pending'"
OF_TASK = "select {0} from durable.tasks where task_id = %(task_id)s"
CLAIM = "json_build_object('task_id', %(task_id)s::uuid, 'claim', 1"

SQL: dict[str, Place] = {
    "create_queue: queue": Place(
        "durable.create_queue(%(text)s)",
        "select queue from durable.queues where queue in (%(text)s, 'new')",
        100,
    ),
    "pause_queue: task": Place(
        "durable.pause_queue('default', %(text)s)",
        "select jsonb_object_keys(paused_names) from durable.queues"
        " where paused_names is not null",
        100,
    ),
    "spawn: task": Place(
        "durable.spawn('default', %(text)s)", SPAWNED.format("name"), 100
    ),
    "spawn: params": Place(
        "durable.spawn('default', 'x', to_jsonb(%(text)s::text))",
        SPAWNED.format("params #>> '{}'"),
        is_free=True,
    ),
    "spawn: a key of params": Place(
        "durable.spawn('default', 'x', jsonb_build_object(%(text)s::text, 1))",
        SPAWNED.format("(select jsonb_object_keys(params))"),
        is_free=True,
    ),
    "spawn: idempotency_key": Place(
        "durable.spawn('default', 'x', '{}',"
        " jsonb_build_object('idempotency_key', %(text)s::text))",
        "select key from durable.idempotency_keys",
        255,
    ),
    "spawn: partition_key": Place(
        "durable.spawn('limited', 'x', '{}',"
        " jsonb_build_object('partition_key', %(text)s::text))",
        "select partition_key from durable.tasks where queue = 'limited'",
        255,
    ),
    "spawn: unique key": Place(
        "durable.spawn('default', 'x', '{}', jsonb_build_object('unique',"
        " jsonb_build_object('key', %(text)s::text)))",
        "select key from durable.unique_keys",
        255,
    ),
    "spawn: a header": Place(
        "durable.spawn('default', 'x', '{}', jsonb_build_object('headers',"
        " jsonb_build_object(%(text)s::text, %(text)s::text)))",
        SPAWNED.format(
            "(select value from jsonb_each_text(headers) where key = value)"
        ),
        is_free=True,
    ),
    "spawn_many: task": Place(
        "durable.spawn_many('default',"
        " jsonb_build_array(jsonb_build_object('task', %(text)s::text)))",
        SPAWNED.format("name"),
        100,
    ),
    "emit_event: event": Place(
        "durable.emit_event('default', %(text)s)",
        "select name from durable.events",
        255,
    ),
    "emit_event: payload": Place(
        "durable.emit_event('default', 'e', to_jsonb(%(text)s::text))",
        "select payload #>> '{}' from durable.events",
        is_free=True,
    ),
    "cancel_task: reason": Place(
        "durable.cancel_task('default', %(task_id)s, %(text)s)",
        OF_TASK.format("error ->> 'message'"),
        1000,
        is_free=True,
    ),
    "claim_tasks: worker": Place(
        "durable.spawn('default', 'due'),"
        " (select count(*)"
        " from durable.claim_tasks('default', %(text)s, array['due']))",
        "select worker from durable.tasks where name = 'due'",
        255,
    ),
    "save_checkpoints: name": Place(
        f"durable.save_checkpoints('default', json_build_array({CLAIM},"
        " 'name', %(text)s::text)))",
        "select name from durable.checkpoints",
        512,
    ),
    "save_checkpoints: value": Place(
        f"durable.save_checkpoints('default', json_build_array({CLAIM},"
        " 'name', 's', 'value', %(text)s::text)))",
        "select value #>> '{}' from durable.checkpoints",
        is_free=True,
    ),
    "complete_tasks: result": Place(
        f"durable.complete_tasks('default', json_build_array({CLAIM},"
        " 'result', %(text)s::text)))",
        OF_TASK.format("result #>> '{}'"),
        is_free=True,
    ),
    "await_event: name": Place(
        "durable.await_event('default', %(task_id)s, 1, %(text)s, 'e')",
        "select name from durable.waits",
        512,
    ),
    "await_event: event": Place(
        "durable.await_event('default', %(task_id)s, 1, 'w', %(text)s)",
        "select event_name from durable.waits",
        255,
    ),
    "spawn_children: name": Place(
        "durable.spawn_children('default', %(task_id)s, 1, jsonb_build_array("
        "jsonb_build_object('name', %(text)s::text, 'task', 'x')))",
        "select name from durable.checkpoints",
        512,
    ),
    "emit_from_task: event": Place(
        "durable.emit_from_task('default', %(task_id)s, 1, 'n', %(text)s)",
        "select name from durable.events",
        255,
    ),
}


def held_task(db: psycopg.Connection) -> UUID:
    """Return a task that a worker holds by claim 1."""
    count_claims(db)
    db.execute("select durable.spawn('default', 'held')")
    claim = "select task_id from durable.claim_tasks('default', 'w')"
    ((task_id,),) = db.execute(claim).fetchall()
    found: UUID = task_id
    return found


def test_stores_or_refuses_any_text_in_sql(
    db: psycopg.Connection, share: Share, random: Random, survived: Survived
) -> None:
    task_id = held_task(db)
    db.execute("select durable.create_queue('limited', '{\"concurrency\": 1}')")
    before = db.execute(EVERYTHING).fetchone()
    for where, place in SQL.items():
        for text in texts(share, random):
            given = {"text": text, "task_id": task_id}
            if place.takes(text):
                with db.transaction(force_rollback=True):
                    db.execute(f"select {place.call}", given)
                    found = db.execute(place.found, given).fetchall()
                assert found == [(text,)], (where, text)
                survived(KEPT)
            else:
                with pytest.raises(psycopg.errors.InvalidParameterValue):
                    db.execute(f"select {place.call}", given)
                survived(REFUSED)
    assert db.execute(EVERYTHING).fetchone() == before


def test_distinguishes_texts_that_look_alike(db: psycopg.Connection) -> None:
    alike = ["é", "e\u0301", "É", "a", "a ", " a", "A", "\uff41", "a\u200b", "\u0430"]
    for text in alike:
        for call in (
            "durable.create_queue(%s)",
            "durable.emit_event('default', %s)",
            "durable.spawn('default', %s)",
        ):
            db.execute(f"select {call}", [text])
        options = json.dumps({"idempotency_key": text})
        db.execute("select durable.spawn('default', 'x', '{}', %s)", [options])
    for found in (
        "select count(*) - 1 from durable.queues",
        "select count(*) from durable.events",
        "select count(*) from durable.idempotency_keys",
        "select count(distinct name) - 1 from durable.tasks",
    ):
        assert db.execute(found).fetchone() == (len(alike),), found
    for text in alike:
        claim = "select name from durable.claim_tasks('default', 'w', array[%s], 9)"
        assert db.execute(claim, [text]).fetchall() == [(text,)]


JSON_ARGUMENTS = (
    "durable.spawn('default', 'x', %s)",
    "durable.spawn('default', 'x', '{}', %s)",
    "durable.spawn_many('default', %s)",
    "durable.emit_event('default', 'e', %s)",
    "durable.create_queue('new', %s)",
)
ENDING = "durable.complete_tasks('default', %s)"


ESCAPES = ("\\u0000", "\\ud800", "\\udc00\\ud800", "\\ud83dx")


def test_refuses_json_with_text_that_postgres_cannot_store(
    db: psycopg.Connection, survived: Survived
) -> None:
    task_id = held_task(db)
    before = db.execute(EVERYTHING).fetchone()
    for escape in ESCAPES:
        documents = [f'"{escape}"', f'{{"{escape}": 1}}', f'[{{"task": "a{escape}"}}]']
        calls = [(call, text) for call in JSON_ARGUMENTS for text in documents]
        ended = f'[{{"task_id": "{task_id}", "claim": 1, "result": "{escape}"}}]'
        for call, document in [*calls, (ENDING, ended)]:
            with pytest.raises(psycopg.DataError) as refusal:
                db.execute(f"select {call}", [document])
            assert refusal.value.sqlstate in {"22P05", "22P02"}
            survived(REFUSED)
    assert db.execute(EVERYTHING).fetchone() == before


# -- through the SDK -------------------------------------------------------------------

Use: TypeAlias = Callable[[Durable, psycopg.Connection, str], Any]


def read(db: psycopg.Connection, query: str, *args: Any) -> Any:
    """Return the single value of a query."""
    ((value,),) = db.execute(query, args).fetchall()
    return value


def queue(client: Durable, db: psycopg.Connection, text: str) -> Any:
    client.create_queue(text)
    (found,) = (queue for queue in client.list_queues() if queue == text)
    if text != "default":
        client.drop_queue(text)
    return found


def name(client: Durable, db: psycopg.Connection, text: str) -> Any:
    handle = client.spawn(text)
    return read(db, "select name from durable.tasks where task_id = %s", handle.task_id)


def params(client: Durable, db: psycopg.Connection, text: str) -> Any:
    handle = client.spawn("x", {text: [text]})
    query = "select params from durable.tasks where task_id = %s"
    ((key, (value,)),) = read(db, query, handle.task_id).items()
    assert key == value
    return value


def key(client: Durable, db: psycopg.Connection, text: str) -> Any:
    handle = client.spawn("x", idempotency_key=text)
    query = "select key from durable.idempotency_keys where task_id = %s"
    return read(db, query, handle.task_id)


def header(client: Durable, db: psycopg.Connection, text: str) -> Any:
    handle = client.spawn("x", headers={"text": text})
    query = "select headers ->> 'text' from durable.tasks where task_id = %s"
    return read(db, query, handle.task_id)


def event(client: Durable, db: psycopg.Connection, text: str) -> Any:
    client.emit_event(text, "packed")
    query = "delete from durable.events where payload = '\"packed\"' returning name"
    return read(db, query)


def payload(client: Durable, db: psycopg.Connection, text: str) -> Any:
    client.emit_event("payload", text)
    query = "delete from durable.events where name = 'payload' returning payload"
    return read(db, query)


def reason(client: Durable, db: psycopg.Connection, text: str) -> Any:
    handle = client.spawn("x")
    client.cancel(handle, reason=text)
    with pytest.raises(TaskCancelled) as cancelled:
        handle.result()
    return cancelled.value.reason


def is_printable_name(limit: int) -> Callable[[str], bool]:
    """Python knows more whitespace characters than SQL does."""
    return lambda text: is_name(text, limit) and not text.isspace()


def is_kept(limit: int = ANY) -> Callable[[str], bool]:
    """Whether Postgres can store it, up to so many bytes."""
    return lambda text: len(text.encode()) <= limit


SDK: list[tuple[Use, Callable[[str], bool]]] = [
    (queue, is_printable_name(100)),
    (name, is_printable_name(100)),
    (params, is_kept()),
    (key, is_printable_name(255)),
    (header, is_kept()),
    (event, is_printable_name(255)),
    (payload, is_kept()),
    (reason, is_kept(1000)),
]


def test_stores_or_refuses_any_text_in_the_sdk(
    dsn: str, db: psycopg.Connection, share: Share, random: Random, survived: Survived
) -> None:
    with Durable(dsn, listen=False) as client:
        for use, takes in SDK:
            for text in texts(share, random):
                if takes(text):
                    assert use(client, db, text) == text
                    survived(KEPT)
                else:
                    refused(use, client, db, text)
                    survived(REFUSED)
            for text in UNKEEPABLE:
                refused(use, client, db, text)
                survived(REFUSED)


def refused(use: Use, client: Durable, db: psycopg.Connection, text: str) -> None:
    """Check that a text is refused; only the task that was to be cancelled exists."""
    waiting = "select count(*) from durable.tasks where state = 'pending'"
    before = read(db, waiting)
    with pytest.raises(InvalidArgument):
        use(client, db, text)
    assert read(db, waiting) - before == (1 if use is reason else 0)


# -- in a running task -----------------------------------------------------------------

WORDS = [*TEXTS, *UNKEEPABLE]


@task(max_attempts=1)
async def carry(number: int, ctx: TaskContext) -> list[Any]:
    """Return the outcome of a text as a step's name, as its value, and as both."""
    text = WORDS[number]
    return [
        await tried(lambda: ctx.step(text, len, "four")),
        await tried(lambda: ctx.step("value", str, text)),
        await tried(lambda: ctx.emit_event(text, 1)),
    ]


async def tried(call: Callable[[], Any]) -> Any:
    try:
        return await call()
    except InvalidArgument:
        return "refused"


@task(max_attempts=1)
async def fail(number: int, ctx: TaskContext) -> None:
    odd = type("Odd", (Exception,), {})
    odd.__qualname__ = WORDS[number]
    raise odd(WORDS[number])


@task(max_attempts=1)
async def fail_in_a_step(number: int, ctx: TaskContext) -> None:
    await ctx.step("fails", fail_with, WORDS[number])


def fail_with(text: str) -> None:
    raise ValueError(text)


async def test_stores_or_refuses_any_text_in_a_running_task(
    dsn: str, survived: Survived
) -> None:
    async with working(dsn, carry) as (app, worker):
        numbers = range(len(WORDS))
        handles = await app.spawn_many(carry, numbers)
        await worker.drain()
        for text, handle in zip(WORDS, handles, strict=True):
            named, value, emitted = await handle.result()
            keepable = text not in UNKEEPABLE
            assert value == (text if keepable else "refused"), json.dumps(text)
            may_be = keepable and is_printable_name(255)(text)
            assert (emitted != "refused") == may_be, json.dumps(text)
            own = text.startswith("$") or text == "a#2"
            assert named == (4 if may_be and not own else "refused"), json.dumps(text)
            survived(KEPT if keepable else REFUSED)


class Speechless(Exception):
    """An exception without a readable message."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Talkative(Exception):
    """An exception with a very long message."""

    def __init__(self) -> None:
        super().__init__("x" * 16_000_000)


def fail_as(kind: type[Exception]) -> None:
    raise kind


@task(max_attempts=1)
async def fail_badly(in_steps: int, ctx: TaskContext) -> None:
    for kind in (Speechless, Talkative)[:in_steps]:
        # A truncated message cannot be restored.
        with contextlib.suppress(kind, StepFailed):
            await ctx.step(kind.__name__, fail_as, kind)
    await ctx.step("goes on", str)
    raise Speechless


@pytest.mark.parametrize("in_steps", [0, 1, 2])
async def test_records_an_exception_with_no_message_or_a_long_one(
    dsn: str, db: psycopg.Connection, in_steps: int, survived: Survived
) -> None:
    found = await outcome(dsn, fail_badly, in_steps)
    assert found.error is not None
    assert found.error.type == "Speechless"
    assert found.error.message == "<no message: str() raised RuntimeError>"
    sizes = "select octet_length(value::text) from durable.checkpoints"
    recorded = db.execute(sizes).fetchall()
    assert len(recorded) == 1 + in_steps
    assert all(size < 100_000 for (size,) in recorded)
    survived("failures that say hostile things, all recorded", 1 + in_steps)


@pytest.fixture
def quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep it out of the test's report, which has to be text."""
    monkeypatch.setattr(logging.getLogger("durable.task"), "disabled", True)


@pytest.mark.usefixtures("quietly")
@pytest.mark.parametrize("failing", [fail, fail_in_a_step])
async def test_records_a_failure_with_any_message(
    dsn: str, failing: Any, survived: Survived
) -> None:
    async with working(dsn, failing) as (app, worker):
        handles = await app.spawn_many(failing, range(len(WORDS)))
        await worker.drain()
        for text, handle in zip(WORDS, handles, strict=True):
            with pytest.raises(TaskFailed) as failed:
                await handle.result()
            end = text[-100:].replace("\0", "\\x00")
            said = end.encode(errors="backslashreplace").decode()
            assert failed.value.error.message.endswith(said), json.dumps(text)
            survived("failures that say hostile things, all recorded")
