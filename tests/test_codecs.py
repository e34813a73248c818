"""With a codec no user data is stored in readable form, and all of it is restored."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import zlib
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import pytest

import durable
from durable import (
    AsyncDurable,
    Conflict,
    Durable,
    InvalidArgument,
    Retry,
    Sealed,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    UnreadablePayload,
    task,
)
from durable._core.payloads import PayloadConverter
from durable._core.values import MAX_BYTES, UnsavableValue
from durable._task.publisher import encoded_line
from durable.encryption import AESGCMCodec
from durable.registry import AnyTask
from tests.support.clock import Clock

SECRET: Final = "attack-at-dawn"  # noqa: S105 - what nobody may read
KEYS: Final = {name: AESGCMCodec.generate_key() for name in ("new", "old")}
NEW: Final = AESGCMCodec({"new": KEYS["new"]})
OLD: Final = AESGCMCodec({"old": KEYS["old"]})
ROTATED: Final = AESGCMCodec(KEYS)


class Squeezing:
    """A custom codec that compresses and does not encrypt."""

    def seal(self, plain: bytes, /) -> Sealed:
        return Sealed("zlib", zlib.compress(plain))

    def open(self, sealed: Sealed, /) -> bytes:
        if sealed.mark != "zlib":
            raise LookupError(sealed.mark)
        return zlib.decompress(sealed.data)

    def fingerprints(self, _: bytes, /) -> Sequence[str]:
        return ()


class Told(Exception):
    """An exception with confidential text."""


@task
async def echo(said: str, ctx: TaskContext) -> str:
    return said


@task(max_attempts=1)
async def tell(said: str, ctx: TaskContext) -> None:
    raise Told(said)


async def whisper(said: str) -> dict[str, Any]:
    return {"said": said, "n": [1e22, -0.0]}


async def give_away(said: str) -> None:
    raise Told(said)


async def insert(conn: psycopg.AsyncConnection[Any], said: str) -> str:
    await conn.execute("select 1")
    return said


def insert_sync(conn: psycopg.Connection[Any], said: str) -> str:
    conn.execute("select 1")
    return said


@task(max_attempts=2, retry=Retry.fixed(0))
async def everything(said: str, ctx: TaskContext) -> list[Any]:
    found: list[Any] = [await ctx.step("whisper", whisper, said)]
    try:
        await ctx.step("give-away", give_away, said)
    except Told as error:
        found.append(str(error))
    found.append(await ctx.step("again", echo_twice, said, max_attempts=2))
    found.append(await ctx.transaction("insert", insert, said))
    step = await ctx.begin_step("by-hand")
    found.append(step.value if step.done else await ctx.complete_step(step, said))
    await ctx.emit_event(f"mine:{ctx.task_id}", said)
    found.append(await ctx.await_event(f"mine:{ctx.task_id}"))
    found.append(await ctx.await_event("theirs"))
    child = await ctx.spawn("child", echo, said)
    more = await ctx.spawn_many("more", echo, [said, said])
    found += [await ctx.join(child), *await ctx.gather(*more)]
    with contextlib.suppress(TaskFailed):
        await ctx.join(await ctx.spawn("bad", tell, said))
    if ctx.attempt == 1:
        raise Told(said)
    return found


async def think_aloud(said: str) -> None:
    ctx = durable.current()
    ctx.write_stream("thoughts", said)
    ctx.logger.info("inside: %s", said)


async def fails(said: str) -> None:
    raise Told(said)


@task
async def publishes(said: str, ctx: TaskContext) -> list[Any]:
    """Publish, log, send and receive everything that a task can."""
    ctx.logger.info("outside: %s", said)
    await ctx.set_value("status", {"is": said})
    await ctx.write_stream("thoughts", said)
    await ctx.step("think", think_aloud, said)
    with contextlib.suppress(Told):
        await ctx.step("fails", fails, said)
    own = durable.current().task_id
    await ctx.send(own, "mine", said)
    found = [await ctx.recv("mine"), await ctx.recv("theirs"), await ctx.recv("with")]
    found.append(await ctx.recv("of-handle"))
    there = await ctx.spawn("there", echo, said, queue="elsewhere")
    here = await ctx.spawn("here", echo, said)
    found += await ctx.gather(there, here)
    found.append(await ctx.join(await ctx.first(here, there)))
    found.append(await ctx.call("call", echo, said, queue="elsewhere"))
    many = await ctx.spawn_many("many", echo, [said], queue="elsewhere")
    found += await ctx.gather(*many)
    if await ctx.patched("new"):
        found.append(said)
    result: list[Any] = await ctx.transaction("end", ends, said, found, completes=True)
    return result


async def ends(
    conn: psycopg.AsyncConnection[Any], said: str, found: list[Any]
) -> list[Any]:
    await conn.execute("select 1")
    return [*found, said]


@task
def in_a_thread(said: str, ctx: SyncTaskContext) -> list[Any]:
    child = ctx.spawn("child", echo, said)
    return [
        ctx.step("echo", str, said),
        ctx.transaction("insert", insert_sync, said),
        ctx.join(child),
    ]


async def echo_twice(said: str) -> str:
    return said * 2


TASKS: Final[list[AnyTask]] = [echo, tell, everything, publishes, in_a_thread]


def application(dsn: str, codec: Any, *tasks: AnyTask) -> AsyncDurable:
    return AsyncDurable(dsn, tasks=tasks or TASKS, codec=codec)


def stored(db: psycopg.Connection) -> str:
    """Return every column of every row of every table."""
    tables = db.execute(
        "select oid::regclass::text from pg_class"
        " where relnamespace = 'durable'::regnamespace and relkind = 'r'"
    ).fetchall()
    rows = [
        db.execute(f"select t::text from {name} as t").fetchall() for (name,) in tables
    ]
    return "\n".join(text for table in rows for (text,) in table)


def expected(said: str) -> list[Any]:
    return [{"said": said, "n": [1e22, -0.0]}, said, said * 2, *[said] * 7]


@pytest.mark.parametrize("codec", [ROTATED, None])
async def test_no_table_holds_readable_data(
    dsn: str, db: psycopg.Connection, codec: Any
) -> None:
    """Without a codec there is some: so the test would notice."""
    async with application(dsn, codec) as app, app.worker() as worker:
        await app.emit_event("theirs", SECRET)
        handle = await app.spawn(everything, SECRET, headers={"h": "readable"})
        (many,) = await app.spawn_many(echo, [SECRET])
        failing = await app.spawn(tell, SECRET)
        sync = await app.spawn(in_a_thread, SECRET)
        assert await handle.result(30) == expected(SECRET)
        assert await sync.result(30) == [SECRET] * 3
        await worker.drain()
        assert (await many.snapshot()).result == SECRET
        with pytest.raises(TaskFailed, match=SECRET) as failed:
            await failing.result()
        assert failed.value.error.type == "Told"
        assert SECRET in (failed.value.error.traceback or "")
    found = stored(db)
    assert "readable" in found
    assert "Told" in found
    assert (SECRET in found) == (codec is None)
    assert ("aes-gcm/new" in found) == (codec is not None)
    row = db.execute(
        "select error ->> 'message' from durable.tasks where name = 'tell' limit 1"
    ).fetchone()
    assert row == ("sealed by aes-gcm/new",) or codec is None


@pytest.mark.parametrize("codec", [ROTATED, None])
async def test_what_tasks_publish_and_log_is_not_readable(
    dsn: str, db: psycopg.Connection, codec: Any
) -> None:
    db.execute("select durable.create_queue('elsewhere')")
    async with (
        application(dsn, codec) as app,
        app.worker(queues=["default", "elsewhere"]) as worker,
    ):
        handle = await app.spawn(publishes, SECRET)
        await app.send(handle, "theirs", SECRET)
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await app.send_with(conn, handle, "with", SECRET)
        await handle.send("of-handle", SECRET)
        stream = handle.stream("thoughts")
        assert [one async for one in stream] == [SECRET] * 2
        assert await handle.result(30) == [SECRET] * 11
        await worker.drain()
        assert await handle.value("status") == {"is": SECRET}
        lines = [line.message async for line in handle.logs()]
        assert lines == [f"outside: {SECRET}", f"inside: {SECRET}"]
        exported = await handle.export_history()
        assert exported["params"] == SECRET
        assert {"$recv:mine", "$first:first"} <= {
            one["name"] for one in exported["checkpoints"]
        }
        assert "durable:codec" not in json.dumps(exported)
        (failed,) = [one for one in await handle.history() if one.name == "fails"]
        assert failed.detail["error"]["message"] == SECRET
        assert failed.detail["error"].keys() == {"type", "message", "module"}
        fork = await app.fork(handle, before="think")
        other = await app.fork(handle, before="think", params=SECRET)
        for one in (fork, other):
            for topic in ("theirs", "with", "of-handle"):
                await one.send(topic, SECRET)
            assert await one.result(30) == [SECRET] * 11
        bad = await app.spawn(tell, SECRET)
        with pytest.raises(TaskFailed):
            await bad.result(30)
        await app.retry(bad, params=SECRET + SECRET)
        with pytest.raises(TaskFailed, match=SECRET * 2):
            await bad.result(30)
        (listed,) = await app.list_tasks(name="tell")
        assert listed.error is not None
        assert listed.error.message == SECRET * 2
    assert (SECRET in stored(db)) == (codec is None)


async def test_names_the_missing_key_in_lists_histories_and_logs(
    dsn: str, db: psycopg.Connection
) -> None:
    async with application(dsn, NEW, logs_and_fails) as app, app.worker():
        handle = await app.spawn(logs_and_fails, SECRET)
        with pytest.raises(TaskFailed):
            await handle.result(30)
    async with AsyncDurable(dsn) as other:
        found = other.handle(handle.task_id)
        (line,) = [line async for line in found.logs()]
        assert line.message == "sealed by aes-gcm/new"
        (listed,) = await other.list_tasks(name="logs-and-fails")
        assert listed.error is not None
        assert listed.error.message == "sealed by aes-gcm/new"
        (ended,) = [one for one in await found.history() if one.kind == "failed"]
        assert ended.detail["error"] == {
            "type": "Told",
            "message": "sealed by aes-gcm/new",
        }
        with pytest.raises(UnreadablePayload, match="aes-gcm/new"):
            await found.export_history()


@task(max_attempts=1)
async def logs_and_fails(said: str, ctx: TaskContext) -> None:
    ctx.logger.info(said)
    raise Told(said)


@pytest.mark.parametrize(
    "line", ["x" * 100_000, "\u2028" * 100_000, "\x00\x01" * 8000, "é" * 8000]
)
def test_encrypts_the_longest_log_line_whole(line: str) -> None:
    """The engine would truncate a longer line, and nobody could decrypt it."""
    sealed = encoded_line(PayloadConverter([NEW]), line)
    assert len(sealed) <= 20_000
    assert len(PayloadConverter([NEW]).decode_text(sealed)) > 1_000


def test_shows_a_plain_line_that_looks_encrypted() -> None:
    line = PayloadConverter([NEW]).encode_text("x")
    plain = PayloadConverter()
    assert plain.decode_text(plain.encode_text(line)) == f" {line}"


async def test_recognizes_new_params_again_after_a_retry(dsn: str) -> None:
    async with application(dsn, NEW) as app:
        handle = await app.spawn(tell, "one", idempotency_key="k")
        await app.cancel(handle)
        await app.retry(handle, params="two")
        again = await app.spawn(tell, "two", idempotency_key="k")
        assert (again.task_id, again.created) == (handle.task_id, False)
        with pytest.raises(Conflict):
            await app.spawn(tell, "one", idempotency_key="k")


async def test_recognizes_the_same_fork_again(dsn: str) -> None:
    async with application(dsn, NEW) as app:
        origin = await app.spawn(echo, "one")
        fork = await app.fork(origin, params="two", idempotency_key="k")
        again = await app.fork(origin, params="two", idempotency_key="k")
        assert (again.task_id, again.created) == (fork.task_id, False)
        with pytest.raises(Conflict):
            await app.fork(origin, params="three", idempotency_key="k")


def test_serves_synchronous_clients(dsn: str, db: psycopg.Connection) -> None:
    with Durable(dsn, tasks=TASKS, codec=NEW) as app:
        handle = app.spawn(in_a_thread, SECRET)
        with app.worker() as worker:
            worker.drain()
        assert handle.result(10) == [SECRET] * 3
    assert SECRET not in stored(db)


async def test_reads_values_stored_before_and_after_a_change_of_codec(
    dsn: str, db: psycopg.Connection
) -> None:
    """Plain values, an old key, a new one, and another codec, in one run."""

    @task
    async def collect(said: str, ctx: TaskContext) -> list[str]:
        heard = [await ctx.await_event(name) for name in ("a", "b", "c", "d", "e")]
        return [said, *heard]

    codecs = {"a": None, "b": OLD, "c": NEW, "d": Squeezing()}
    async with application(dsn, [ROTATED, Squeezing()], collect) as app:
        handle = await application(dsn, OLD, collect).__aenter__()
        old = await handle.spawn(collect, "z")
        await handle.close()
        for name, codec in codecs.items():
            async with application(dsn, codec, collect) as emitter:
                await emitter.emit_event(name, name * 2)
        db.execute("""select durable.emit_event('default', 'e', '"raw"')""")
        async with app.worker() as worker:
            await worker.drain()
            found = await app.handle(old.task_id, collect).result(10)
    assert found == ["z", "aa", "bb", "cc", "dd", "raw"]
    marks = ["aes-gcm/old", "aes-gcm/new", "zlib"]
    assert all(
        f'"durable:codec": "{mark}"' in stored(db).replace('""', '"') for mark in marks
    )


async def test_sets_a_task_aside_for_which_it_has_no_key(
    dsn: str, db: psycopg.Connection, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """No attempt is used, nothing loops, and a worker that has the key continues."""
    async with application(dsn, NEW) as knowing:
        handle = await knowing.spawn(echo, SECRET)
        for codec, mark in (
            (OLD, "missing here"),
            (None, "missing here"),
            (wrong(), "rejected"),
        ):
            caplog.clear()
            async with application(dsn, codec) as app, app.worker() as worker:
                assert await worker.drain() == 1
                clock.advance(58)
                assert await worker.drain() == 0  # for a minute
            (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
            assert "aes-gcm/new" in record.getMessage()
            assert mark in record.getMessage()
            clock.advance(3)
        found = await handle.snapshot()
        assert (found.state, found.attempt) == ("pending", 1)
        async with knowing.worker() as worker:
            await worker.drain()
        assert await handle.result(10) == SECRET


async def test_sets_a_task_aside_whose_event_it_cannot_decrypt(
    dsn: str, clock: Clock
) -> None:
    async with application(dsn, OLD, hears) as app, application(dsn, NEW) as other:
        handle = await app.spawn(hears, "x")
        async with app.worker() as worker:
            await worker.drain()
            await other.emit_event("news", SECRET)
            await worker.drain()
            found = await handle.snapshot()
            assert (found.state, found.attempt) == ("pending", 1)
        await other.emit_event("early", SECRET)
        late = await app.spawn(hears, "early")
        async with app.worker() as worker:
            await worker.drain()
            assert (await late.snapshot()).state == "pending"
        clock.advance(61)
        async with application(dsn, ROTATED, hears) as able, able.worker() as worker:
            await worker.drain()
            assert await able.handle(handle.task_id, hears).result(10) == SECRET
            assert await able.handle(late.task_id, hears).result(10) == SECRET


@task
async def hears(event: str, ctx: TaskContext) -> str:
    heard: str = await ctx.await_event("news" if event == "x" else event)
    return heard


async def test_tells_a_client_which_key_is_missing(dsn: str) -> None:
    async with application(dsn, NEW) as app, app.worker():
        handle = await app.spawn(echo, SECRET)
        assert await handle.result(10) == SECRET
    async with application(dsn, None) as app:
        mine = app.handle(handle.task_id, echo)
        assert await mine.state() == "completed"
        with pytest.raises(UnreadablePayload, match="needs a codec or a key") as raised:
            await mine.result()
        assert raised.value.mark == "aes-gcm/new"
        with pytest.raises(UnreadablePayload):
            await mine.snapshot()


async def test_recognizes_the_same_params_under_any_encryption(dsn: str) -> None:
    asked = {"b": 1.0, "a": [SECRET]}
    async with application(dsn, OLD) as before, application(dsn, ROTATED) as after:
        first = await before.spawn("job", asked, idempotency_key="k")
        same = await before.spawn("job", {"a": [SECRET], "b": 1}, idempotency_key="k")
        rotated = await after.spawn("job", asked, idempotency_key="k")
        (many,) = await after.spawn_many("job", [asked], idempotency_key="k")
        assert {first, same, rotated, many} == {first}
        assert [one.created for one in (first, same, rotated, many)] == [
            True,
            *[False] * 3,
        ]
        for app in (before, after):
            with pytest.raises(Conflict, match="other params"):
                await app.spawn("job", {"a": []}, idempotency_key="k")
            with pytest.raises(Conflict, match="the name"):
                await app.spawn("other", asked, idempotency_key="k")


async def test_recognizes_an_idempotency_key_from_before_there_was_a_codec(
    dsn: str,
) -> None:
    async with application(dsn, None) as before, application(dsn, NEW) as after:
        first = await before.spawn("job", {"n": 1}, idempotency_key="k")
        assert await after.spawn("job", {"n": 1}, idempotency_key="k") == first


async def test_recognizes_the_same_child_again(dsn: str) -> None:
    @task
    async def parent(said: str, ctx: TaskContext) -> list[bool]:
        children = [
            await ctx.spawn(name, echo, said, idempotency_key="once") for name in "ab"
        ]
        with pytest.raises(Conflict):
            await ctx.spawn("c", echo, "other", idempotency_key="once")
        return [child.created for child in children]

    async with application(dsn, NEW, parent, echo) as app, app.worker():
        handle = await app.spawn(parent, SECRET)
        assert await handle.result(10) == [True, False]


async def test_restores_the_exception_of_an_encrypted_failure(
    dsn: str, clock: Clock
) -> None:
    @task
    async def stumble(said: str, ctx: TaskContext) -> str:
        try:
            await ctx.step("give-away", give_away, said)
        except Told as error:
            await ctx.sleep_for("nap", 60)
            return str(error)
        return "not reached"

    async with application(dsn, NEW, stumble) as app, app.worker() as worker:
        handle = await app.spawn(stumble, SECRET)
        await worker.drain()
        clock.advance(61)
        await worker.drain()
        assert await handle.result(10) == SECRET


# -- the converter itself ----------------------------------------------------------


def wrong() -> AESGCMCodec:
    """Return a codec whose key has the right name and the wrong bytes."""
    return AESGCMCodec({"new": AESGCMCodec.generate_key()})


def test_decodes_at_every_depth_but_not_inside_encrypted_values() -> None:
    payloads = PayloadConverter([NEW])
    inside = payloads.encode('{"a": 1}')
    twice = payloads.encode(inside)
    assert json.loads(payloads.decode(f'[{inside}, {{"r": {inside}}}, 2]')) == [
        {"a": 1},
        {"r": {"a": 1}},
        2,
    ]
    assert payloads.decode(twice) == inside
    assert payloads.decode('{"durable:codec": 1, "data": "x"}') == (
        '{"durable:codec": 1, "data": "x"}'
    )
    text = '{"z": 1e22, "a": -0.0, "s": "\\"durable:codec\\""}'
    assert payloads.decode(payloads.encode(text)) == text
    assert PayloadConverter().encode(text) is text
    assert PayloadConverter().decode(text) is text


@pytest.mark.parametrize(
    "text",
    [
        '{"durable:codec":"x","data":"eA=="}',
        '[{"data":"eA==","durable:codec":"x"}]',
    ],
)
def test_refuses_to_save_values_that_look_encrypted(text: str) -> None:
    with pytest.raises(UnsavableValue, match="how sealed values look"):
        PayloadConverter().encode(text)
    assert PayloadConverter([NEW]).decode(PayloadConverter([NEW]).encode(text)) == text


def test_drops_arguments_of_an_error_that_look_encrypted() -> None:
    looks = {"durable:codec": "x", "data": "eA=="}
    error = json.dumps({"type": "E", "message": "m", "args": [looks]})
    assert json.loads(PayloadConverter().encode_error(error)) == {
        "type": "E",
        "message": "m",
    }


def test_refuses_values_that_are_too_long_once_encrypted() -> None:
    text = json.dumps("x" * (MAX_BYTES - 100))
    with pytest.raises(UnsavableValue, match="as aes-gcm/new seals it"):
        PayloadConverter([NEW]).encode(text)


@pytest.mark.parametrize("length", [100, 20_000, 2_000_000])
def test_keeps_the_end_of_an_error_that_would_be_too_long(length: int) -> None:
    payloads = PayloadConverter([NEW])
    error = {"type": "E", "message": "\x1b" * length + "end", "traceback": "t" * length}
    sealed = payloads.encode_error(json.dumps(error))
    assert len(sealed) < 262_144
    said = json.loads(payloads.decode(sealed))["sealed"]
    assert said["message"].endswith("end")


def test_detects_tampering() -> None:
    payloads = PayloadConverter([NEW])
    envelope = json.loads(payloads.encode('"x"'))
    data = bytearray(base64.b64decode(envelope["data"]))
    data[-1] ^= 1
    for coded in (base64.b64encode(data).decode(), "", "?"):
        with pytest.raises(UnreadablePayload):
            payloads.decode(json.dumps(envelope | {"data": coded}))
    other = json.dumps(envelope | {"durable:codec": "aes-gcm/old"})
    with pytest.raises(UnreadablePayload, match="rejected by AESGCMCodec"):
        PayloadConverter([ROTATED]).decode(other)


@pytest.mark.parametrize(
    "keys",
    [{}, {"k": b"short"}, {"": KEYS["new"]}, {"a b": KEYS["new"]}, {"k": "x" * 32}],
)
def test_refuses_invalid_keys(keys: Any) -> None:
    with pytest.raises(InvalidArgument):
        AESGCMCodec(keys)


def test_never_prints_a_key() -> None:
    assert repr(ROTATED) == "<AESGCMCodec with keys new, old>"
