"""Each role may use only what it was granted, checked for every function and relation.

The catalog lists what there is to try; the matrix below, which is reviewed, says who
may use it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from durable import AsyncDurable, Durable, Forbidden
from durable.errors import DurableError
from tests.support.calls import Call, every_call, outcome
from tests.support.claims import count_claims
from tests.support.roles import BECOMING, Roles
from tests.support.schema import bodies, described
from tests.support.survival import Share, Survived

REFUSED = "attempts to reach what was not granted, all refused"
TRAPS = "calls past a caller's own functions, operators and settings, none led astray"

ABOUT_NO_QUEUE = {"errors", "list_queues", "next_fires", "version"}
ABOUT_ANY_QUEUE = {"find_task", "diagnose"}  # of those that the caller may use
# A role whose right was revoked must still be able to unregister its listener.
FREE = ABOUT_NO_QUEUE | {"unregister_listener"}
CLIENT = FREE | {
    *("spawn", "spawn_many", "emit_event", "cancel_task", "register_listener"),
    *("send_message", "list_definitions", "reschedule_task"),
    "reprioritize_task",
    *("get_task_result", "get_task_results", "poll_results"),
    *("get_value", "get_stream", "get_log_lines"),
    *("create_schedule", "drop_schedule", "apply_schedules", "pause_schedule"),
    *("resume_schedule", "trigger_schedule", "backfill_schedule"),
    *("list_schedules", "list_schedule_runs"),
}
HOUSEKEEPING = {
    *("run_maintenance", "expire_leases", "expire_tasks", "apply_deferred_work"),
    *("cleanup", "prune_events", "fire_schedules"),
}
WORKER = (
    CLIENT
    | HOUSEKEEPING
    | {
        *("claim_tasks", "get_next_due", "list_waiting_names", "extend_leases"),
        *("release_tasks", "release_unknown", "load_checkpoints", "lock_task"),
        "flush",
        *("save_checkpoints", "complete_tasks", "fail_tasks", "suspend_tasks"),
        *("poll_waits", "sleep_until", "await_event", "await_tasks"),
        *("spawn_children", "spawn_children_in", "emit_from_task", "announce_worker"),
        *("remove_worker", "announce_definitions", "announce_schedules"),
        *("send_from_task", "recv_message", "publish", "load_published"),
    }
)
OPERATING = {
    *("queue_stats", "retry_task", "drop_queue", "fork_task", "task_history"),
    *("export_history", "list_tasks", "cancel_tasks", "retry_tasks", "delete_tasks"),
    *("count_tasks", "queue_throughput", "queue_depth", "task_totals"),
    *("recount_totals", "list_workers", "list_versions", "promote_version"),
    *("set_version", "set_partition_limit", "list_audit", "find_task", "get_task"),
    *("list_events", "list_published", "task_timeline", "diagnose"),
    *("list_children", "pause_queue", "resume_queue", "explain_task"),
    "list_partitions",
}
READER = {
    *("list_queues", "list_definitions", "errors", "version", "list_schedules"),
    *("list_schedule_runs", "next_fires", "get_task_result", "get_task_results"),
    *("poll_results", "get_value", "get_stream", "get_log_lines", "queue_stats"),
    *("list_tasks", "list_children", "task_history", "task_timeline"),
    *("export_history", "explain_task", "list_versions", "list_workers"),
    *("list_audit", "find_task", "get_task", "list_events", "list_published"),
    *("diagnose", "list_partitions", "count_tasks", "queue_throughput"),
    *("queue_depth", "task_totals"),
}
OPERATOR = CLIENT | HOUSEKEEPING | OPERATING | {"create_queue"}
VIEWS = {"attempts", "history", "task_list", "waiting", "workers"}

# (role, queue): what it may call. "listed" applies to the mailer only; the stranger has
# been granted everything except the functions that change that.
MAY: dict[tuple[str, str], set[str]] = {
    ("nobody", "open"): set(),
    ("client", "open"): CLIENT,
    ("worker", "open"): WORKER,
    ("operator", "open"): OPERATOR,
    ("reader", "open"): READER,
    ("stranger", "open"): WORKER | OPERATING,
    ("mailer", "open"): WORKER,
    ("nobody", "listed"): set(),
    ("client", "listed"): FREE,
    ("worker", "listed"): FREE,
    ("operator", "listed"): OPERATOR,
    ("reader", "listed"): ABOUT_NO_QUEUE | ABOUT_ANY_QUEUE,
    ("stranger", "listed"): FREE | ABOUT_ANY_QUEUE,
    ("mailer", "listed"): WORKER,
}

EVERYTHING = """
select md5(string_agg(line, '' order by line)) from (
  select tasks::text from durable.tasks
  union all select runs::text from durable.runs
  union all select checkpoints::text from durable.checkpoints
  union all select events::text from durable.events
  union all select waits::text from durable.waits
  union all select idempotency_keys::text from durable.idempotency_keys
  union all select unique_keys::text from durable.unique_keys
  union all select deferred_work::text from durable.deferred_work
  union all select mailboxes::text from durable.mailboxes
  union all select messages::text from durable.messages
  union all select message_keys::text from durable.message_keys
  union all select task_values::text from durable.task_values
  union all select stream_entries::text from durable.stream_entries
  union all select log_lines::text from durable.log_lines
  union all select queues::text from durable.queues
  union all select versions::text from durable.versions
  union all select audit::text from durable.audit
  union all select worker_sessions::text from durable.worker_sessions
  union all select schedules::text from durable.schedules
  union all select migrations::text from durable.migrations
) as lines (line)
"""


@dataclass(frozen=True, slots=True)
class Cast:
    """All roles, and a held task in each queue."""

    roles: Roles
    names: dict[str, str]
    tasks: dict[str, UUID]


@pytest.fixture
def cast(dsn: str, db: psycopg.Connection) -> Iterator[Cast]:
    """Create all roles, a queue open to all, and a queue restricted to the mailer."""
    roles = Roles(db, dsn)
    count_claims(db)
    names = {
        "nobody": roles.make("nobody"),
        "client": roles.make("client", "durable_client"),
        "worker": roles.make("worker", "durable_worker"),
        "operator": roles.make("operator", "durable_operator"),
        "reader": roles.make("reader", "durable_reader"),
        "stranger": roles.make(
            "stranger",
            "durable_client",
            "durable_worker",
            *(f"execute on function durable.{function}" for function in OPERATING),
        ),
        "mailer": roles.make("mailer", "durable_worker"),
    }
    tasks = {}
    for queue, policy in (
        ("open", "{}"),
        ("listed", f'{{"roles": ["{names["mailer"]}"]}}'),
    ):
        db.execute("select durable.create_queue(%s, %s)", [queue, policy])
        db.execute("select durable.spawn(%s, 'x')", [queue])
        claim = "select task_id from durable.claim_tasks(%s, 'w')"
        ((tasks[queue],),) = db.execute(claim, [queue]).fetchall()
    yield Cast(roles, names, tasks)
    roles.drop_all()


def fingerprint(db: psycopg.Connection) -> object:
    """Return a value that changes with any row, function or grant."""
    acls = "select array_agg(proacl::text order by oid) from pg_proc"
    return (
        db.execute(EVERYTHING).fetchone(),
        db.execute(f"{acls} where pronamespace = 'durable'::regnamespace").fetchone(),
        described(db),
        bodies(db),
    )


# -- functions -------------------------------------------------------------------------


def test_every_role_may_call_exactly_what_it_was_granted(
    db: psycopg.Connection, cast: Cast, survived: Survived
) -> None:
    before = fingerprint(db)
    meant = {*DurableError.by_code, "ok"} - {"42501"}
    for become, ((role, queue), may) in itertools.product(BECOMING, MAY.items()):
        calls = every_call(db, queue, cast.tasks[queue])
        with cast.roles.session(cast.names[role], become) as session:
            for call in calls:
                if call.function in may:
                    with session.transaction(force_rollback=True):
                        assert outcome(session, call) in meant, (role, queue, call)
                else:
                    assert outcome(session, call) == "42501", (role, queue, call)
                    survived(REFUSED)
    assert fingerprint(db) == before


def test_grants_match_the_reviewed_matrix(db: psycopg.Connection, cast: Cast) -> None:
    granted = """
        select distinct proname from pg_proc
        where pronamespace = 'durable'::regnamespace
          and has_function_privilege(%s, oid, 'execute')
    """
    for role, name in cast.names.items():
        functions = {function for (function,) in db.execute(granted, [name])}
        assert functions == MAY[role, "open"], role


def test_the_matrix_covers_every_public_function(
    db: psycopg.Connection, cast: Cast
) -> None:
    calls = every_call(db, "open", cast.tasks["open"])
    public = {call.function for call in calls if not call.function.startswith("_")}
    assert public == WORKER | OPERATOR


def test_shows_a_role_nothing_of_queues_it_may_not_use(
    db: psycopg.Connection, cast: Cast, survived: Survived
) -> None:
    with cast.roles.session(cast.names["client"]) as session:
        listed = session.execute("select durable.list_queues()").fetchall()
        assert listed == [("default",), ("open",)]
        for task_id in (cast.tasks["listed"], UUID(int=7)):
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as refusal:
                session.execute(
                    "select durable.get_task_result('listed', %s)", [task_id]
                )
            assert refusal.value.diag.message_primary == (
                'no right to use the queue "listed"'
            )
            survived(REFUSED)


# -- tables, views, types, the schema --------------------------------------------------

RELATIONS = """
select relname, relkind, (
  select attname from pg_attribute where attrelid = pg_class.oid and attnum = 1)
from pg_class
where relnamespace = 'durable'::regnamespace and relkind not in ('i', 'c')
order by relname
"""
ON_A_RELATION = (
    "select * from durable.{0}",
    "select {1} from durable.{0}",
    "copy (select * from durable.{0}) to stdout",
    "create table {2}.copied (like durable.{0})",
    "select from durable.{0} for update",
    "insert into durable.{0} default values",
    "update durable.{0} set {1} = {1}",
    "delete from durable.{0}",
    "merge into durable.{0} using (select 1) as s on true when matched then delete",
    "truncate durable.{0}",
    "lock table durable.{0} in row exclusive mode",
    "create table {2}.child () inherits (durable.{0})",
    "create trigger spy before insert on durable.{0} execute function {2}.spy()",
    "create rule spy as on insert to durable.{0} do also notify spied",
    "create policy spy on durable.{0}",
    "create index on durable.{0} ({1})",
    "create statistics {2}.spy on {1}, {1} from durable.{0}",
    "alter table durable.{0} owner to {2}",
    "alter table durable.{0} add column spied integer",
    "alter table durable.{0} disable trigger all",
    "grant select on durable.{0} to {2}",
    "comment on column durable.{0}.{1} is 'spied'",
    "drop table durable.{0}",
    "drop view durable.{0}",
)
READING = ON_A_RELATION[:4]
SPY = """
create function {0}.spy() returns trigger language plpgsql as 'begin return new; end'
"""
ON_A_TYPE = (
    "alter type durable.{0} owner to {1}",
    "alter type durable.{0} rename to spied",
    "comment on type durable.{0} is 'spied'",
    "drop type durable.{0}",
)
ON_A_FUNCTION = (
    "create or replace function {0} returns integer language sql as 'select 1'",
    "alter function {0} owner to {1}",
    "alter function {0} set search_path = {1}",
    "alter function {0} security invoker",
    "grant execute on function {0} to {1}",
    "drop function {0}",
)
ON_THE_SCHEMA = (
    "create table durable.spied ()",
    "create view durable.spied as select 1",
    "create function durable.spied() returns integer language sql as 'select 1'",
    "create type durable.spied as (a integer)",
    "create domain durable.spied as text",
    "create sequence durable.spied",
    "create operator durable.= (leftarg = text, rightarg = text, function = texteq)",
    "create aggregate durable.spied(integer) (sfunc = int4pl, stype = integer)",
    "alter schema durable rename to spied",
    "alter schema durable owner to {0}",
    "grant create on schema durable to {0}",
    "drop schema durable cascade",
    "comment on schema durable is 'spied'",
    "set role {1}",
    "set session_replication_role = replica",
    "grant {1} to {0}",
    "alter role {0} superuser",
    "grant durable_operator to {0}",
    "create event trigger spy on ddl_command_end execute function pg_catalog.now()",
    "alter default privileges for role {1} grant all on functions to public",
)


def refusal(session: psycopg.Connection, statement: str) -> str | None:
    """Execute a statement; return the SQLSTATE it was refused with.

    A GRANT by a role without grant option is only a warning if the role has the
    privilege itself.
    """
    try:
        with session.transaction():
            session.execute(statement)
    except psycopg.Error as error:
        return error.sqlstate
    return "01007" if statement.startswith("grant ") else None


def test_only_the_owner_may_use_private_relations_types_and_the_schema(
    db: psycopg.Connection, cast: Cast, survived: Survived
) -> None:
    before = fingerprint(db)
    for role, name in cast.names.items():
        readable = VIEWS if role == "operator" else set()
        with cast.roles.session(name) as session:
            session.execute("set client_min_messages = error")
            session.execute(SPY.format(name))
            for kind, statement in on_relations(db, name, readable):
                found = refusal(session, statement)
                assert found in may_refuse(kind), (role, statement, found)
                survived(REFUSED)
            for statement in others(db, name):
                found = refusal(session, statement)
                refused = {"42501", "01007", "42809", "2BP01"}
                assert found in refused, (role, statement, found)
                survived(REFUSED)
    assert fingerprint(db) == before


def on_relations(
    db: psycopg.Connection, name: str, readable: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield the statements that are forbidden on a relation, with its kind."""
    for relation, kind, column in db.execute(RELATIONS).fetchall():
        for text in ON_A_RELATION:
            if text not in READING or relation not in readable:
                yield kind, text.format(relation, column, name)


def may_refuse(kind: str) -> set[str]:
    """Return the SQLSTATEs of a refusal; a table command on a view has another one."""
    return {"42501", "01007"} | (
        {"55000", "42809", "0A000"} if kind == "v" else {"42809"}
    )


def others(db: psycopg.Connection, name: str) -> Iterator[str]:
    """Yield statements that only the owner of the schema may execute."""
    types = """
        select typname from pg_type
        where typnamespace = 'durable'::regnamespace and typcategory <> 'A'
    """
    for (found,) in db.execute(types).fetchall():
        yield from (text.format(found, name) for text in ON_A_TYPE)
    functions = """
        select oid::regprocedure::text from pg_proc
        where pronamespace = 'durable'::regnamespace
    """
    for (found,) in db.execute(functions).fetchall():
        yield from (text.format(found, name) for text in ON_A_FUNCTION)
    yield from (text.format(name, db.info.user) for text in ON_THE_SCHEMA)


# -- objects and settings of the caller ------------------------------------------------

SHADOWS = """
select format('create function %%s.%%I(%%s) returns %%s language plpgsql as %%L',
  %(schema)s::text, proname, (
    select string_agg(format_type(argument, null), ', ' order by place)
    from unnest(proargtypes) with ordinality as given (argument, place)),
  case when proretset then 'setof ' end || format_type(prorettype, null),
  'begin raise sqlstate ''TRAP0''; end')
from pg_proc
where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f'
  and prorettype not in (
    select oid from pg_type where typtype = 'p' and typname not like 'any%%')
  and exists (
    select from pg_proc as ours
    where ours.pronamespace = 'durable'::regnamespace
      and ours.prosrc ~ ('\\m' || pg_proc.proname || '\\s*\\('))
"""
OPERATORS = """
select format('create operator %%s.%%s (leftarg = %%s, rightarg = %%s, function = %%s)',
  %(schema)s::text, oprname, format_type(oprleft, null), format_type(oprright, null),
  format('%%s.trap_%%s', %(schema)s::text, oprcode::oid)),
  format('create function %%s.trap_%%s(%%s, %%s) returns %%s language plpgsql as %%L',
  %(schema)s::text, oprcode::oid,
  format_type(oprleft, null), format_type(oprright, null), format_type(oprresult, null),
  'begin raise sqlstate ''TRAP0''; end')
from pg_operator
where oprnamespace = 'pg_catalog'::regnamespace and oprleft <> 0
  and oprname in ('=', '<>', '<', '<=', '>', '>=', '+', '-', '*', '%%', '||', '->',
    '->>', '?', '~', '~*', '!~', '!~*')
  and array[oprleft, oprright] <@ array['text', 'name', 'integer', 'bigint',
    'uuid', 'jsonb', 'json', 'timestamptz', 'interval', 'double precision', 'numeric',
    'boolean', 'tid', 'anyarray', 'anycompatiblearray', 'anycompatible'
  ]::regtype[]::oid[]
"""
TABLES = """
select relname from pg_class
where relnamespace in ('durable'::regnamespace, 'pg_catalog'::regnamespace)
  and relkind in ('r', 'v') and (relnamespace <> 'pg_catalog'::regnamespace
    or relname in ('pg_roles', 'pg_class', 'pg_proc'))
"""


def lay_traps(db: psycopg.Connection, session: psycopg.Connection, schema: str) -> int:
    """Create functions and operators that count their calls."""
    laid = 0
    shadows = db.execute(SHADOWS, {"schema": schema}).fetchall()
    for (statement,) in shadows:
        laid += _may_be_made(session, statement)
    for operator, function in db.execute(OPERATORS, {"schema": schema}).fetchall():
        _may_be_made(session, function)
        laid += _may_be_made(session, operator)
    for (table,) in db.execute(TABLES).fetchall():
        session.execute(f"create temporary table {table} (trap integer)")
        laid += 1
    session.execute(f"set search_path = pg_temp, {schema}, pg_catalog")
    return laid


def _may_be_made(session: psycopg.Connection, statement: str) -> bool:
    try:
        session.execute(statement)
    except psycopg.Error:  # of a type that nobody can create
        return False
    return True


def reached(
    session: psycopg.Connection, calls: list[Call], may: set[str]
) -> dict[str, str]:
    """Return the outcome of every call that a client may make."""
    found = {}
    for call in calls:
        if call.function in may:
            with session.transaction(force_rollback=True):
                found[call.function] = outcome(session, call)
    return found


def test_functions_are_safe_from_objects_earlier_in_the_search_path(
    db: psycopg.Connection, cast: Cast, share: Share, random: Random, survived: Survived
) -> None:
    calls = every_call(db, "open", cast.tasks["open"])
    for role in random.sample(["worker", "operator"], share(quick=1, long=2)):
        may = MAY[role, "open"]
        with cast.roles.session(cast.names[role]) as session:
            expected = reached(session, calls, may)
        with cast.roles.session(cast.names[role]) as session:
            assert lay_traps(db, session, cast.names[role]) > 100
            sprung = refusal(session, "select 'a'::text = 'a'::text")
            assert sprung == "TRAP0"  # check that a trap works
            assert reached(session, calls, may) == expected
            survived(TRAPS, len(expected))


ISOLATION = "default_transaction_isolation"
NEED_READ_COMMITTED = {
    "apply_deferred_work",
    "drop_queue",
    "run_maintenance",
    "prune_events",
    "recount_totals",
}
SETTINGS = {
    "array_nulls": "off",
    "backslash_quote": "on",
    "bytea_output": "escape",
    "check_function_bodies": "off",
    "constraint_exclusion": "on",
    "datestyle": "German",
    ISOLATION: "serializable",
    "enable_indexscan": "off",
    "extra_float_digits": "-15",
    "from_collapse_limit": "1",
    "intervalstyle": "iso_8601",
    "jit_above_cost": "0",
    "join_collapse_limit": "1",
    "lc_numeric": "C",
    "lock_timeout": "1h",
    "max_parallel_workers_per_gather": "8",
    "plan_cache_mode": "force_custom_plan",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "search_path": "",
    "standard_conforming_strings": "off",
    "statement_timeout": "1h",
    "synchronize_seqscans": "off",
    "synchronous_commit": "off",
    "timezone": "Pacific/Chatham",
    "transform_null_equals": "on",
    "work_mem": "64kB",
    "xmloption": "document",
}


def test_results_do_not_depend_on_the_callers_settings(
    db: psycopg.Connection, cast: Cast, share: Share, random: Random, survived: Survived
) -> None:
    before, calls = fingerprint(db), every_call(db, "open", cast.tasks["open"])
    for role in ("worker", "operator"):
        may = MAY[role, "open"]
        with cast.roles.session(cast.names[role]) as session:
            expected = reached(session, calls, may)
        number = share(quick=4, long=len(SETTINGS))
        for setting, value in random.sample(sorted(SETTINGS.items()), number):
            with cast.roles.session(cast.names[role]) as session:
                session.execute("set escape_string_warning = off")
                session.execute("select set_config(%s, %s, false)", [setting, value])
                needed = NEED_READ_COMMITTED & expected.keys()
                refused = dict.fromkeys(needed, "WFISO") if setting == ISOLATION else {}
                found = reached(session, calls, may)
                assert found == expected | refused, (setting, value)
                survived(TRAPS, len(expected))
    assert fingerprint(db) == before


# -- grants that change ----------------------------------------------------------------


def as_role(dsn: str, role: str) -> str:
    """Return an address whose sessions run as that role."""
    return f"{dsn}{'&' if '?' in dsn else '?'}options=-crole%3D{role}"


AMBUSH = """
create table log (what text);
create table bait as select number from generate_series(1, 100) as number;

create function loot(number integer) returns integer language plpgsql as $$
begin
  insert into {role}.log
  select state::text from durable.get_task_result('listed', '{task_id}');
  perform durable.spawn('listed', 'evil');
  return number;
exception when others then
  insert into {role}.log values (sqlstate);
  return number;
end $$;

create function innocent(number integer) returns integer language plpgsql immutable
as $$ begin return {role}.loot(number); end $$;

create index on bait ({role}.innocent(number))
"""


def test_functions_of_indexes_run_without_the_privileges_of_the_session(
    db: psycopg.Connection, cast: Cast, survived: Survived
) -> None:
    """ANALYZE of a table runs its index functions as the table's owner."""
    role = cast.names["client"]
    with cast.roles.session(role) as session:
        session.execute(f"set search_path = {role}")
        session.execute(AMBUSH.format(role=role, task_id=cast.tasks["listed"]))
        session.execute("truncate log")
    db.execute(f"analyze {role}.bait")
    seen = db.execute(f"select distinct what from {role}.log").fetchall()
    assert seen == [("42501",)]
    assert db.execute("select from durable.tasks where name = 'evil'").fetchall() == []
    survived(REFUSED, 100)


def test_grants_take_effect_from_the_next_call(
    dsn: str, cast: Cast, survived: Survived
) -> None:
    mailer, client = (as_role(dsn, cast.names[role]) for role in ("mailer", "client"))
    with (
        Durable(dsn, queue="listed") as owner,
        Durable(mailer, queue="listed") as mails,
        Durable(client, queue="listed") as other,
    ):
        forbidden = functools.partial(pytest.raises, Forbidden, match="listed")
        handle = mails.spawn("mail")
        for _ in range(5):
            with forbidden():
                other.spawn("mail")
            with forbidden():
                other.get_result(handle.task_id)
            owner.create_queue(roles=None)
            assert other.get_result(handle.task_id).state == "pending"
            owner.create_queue(roles=[cast.names["mailer"]])
            assert handle.state() == "pending"
            survived(REFUSED, 2)


# What roles other than the owner may do with private objects, apart from PUBLIC's USAGE
# on types.
OPENED = """
select object, grantee::regrole::text, privilege_type
from (
  select relname::text as object, relacl as acl, relowner as owner
  from pg_class where relnamespace = 'durable'::regnamespace and relkind <> 'v'
  union all
  select attname, attacl, relowner
  from pg_attribute join pg_class on attrelid = pg_class.oid
  where relnamespace = 'durable'::regnamespace
  union all
  select proname, proacl, proowner
  from pg_proc where pronamespace = 'durable'::regnamespace and proname ~ '^_'
  union all
  select 'type ' || typname, typacl, typowner
  from pg_type where typnamespace = 'durable'::regnamespace
) as objects
cross join aclexplode(acl)
where grantee <> owner and not (grantee = 0 and object like 'type %')
"""
GRANTED = """
select array_agg((proname, grantee)::text order by proname, grantee::text)
from pg_proc cross join aclexplode(proacl)
where pronamespace = 'durable'::regnamespace and grantee <> proowner
"""
MAY_CREATE = "select has_schema_privilege(%s, 'durable', 'create, usage')"
KINDS = ("tables", "sequences", "functions", "types", "schemas")


@pytest.mark.parametrize("way", ["install", "upgrade"])
def test_revokes_what_default_privileges_granted(
    dsn: str, db: psycopg.Connection, cast: Cast, way: str
) -> None:
    """An operator's own grants on public functions stay."""
    app = cast.names["nobody"]
    reviewed = db.execute(GRANTED).fetchone()
    for kind in KINDS:
        for grantee in (app, "public"):
            db.execute(f"alter default privileges grant all on {kind} to {grantee}")
    if way == "upgrade":
        db.execute(f"grant all on all tables in schema durable to {app}, public")
        db.execute(f"grant select (params), update (state) on durable.tasks to {app}")
        db.execute(f"grant all on all functions in schema durable to {app}, public")
        db.execute(f"grant all on schema durable to {app}, public")
        db.execute(f"grant usage on type durable.task_state to {app}")
        db.execute("create function durable._new() returns int language sql return 1")
    else:
        db.execute("drop schema durable cascade")
    with Durable(dsn) as client:
        client.migrate()
    assert db.execute(OPENED).fetchall() == []
    assert db.execute(MAY_CREATE, [app]).fetchone() == (False,)
    if way == "upgrade":
        assert db.execute(GRANTED).fetchone() == reviewed
    else:
        with (
            cast.roles.session(app) as session,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            session.execute("select durable.spawn('default', 'x')")


def test_keeps_the_grants_of_an_operator(
    dsn: str, db: psycopg.Connection, cast: Cast
) -> None:
    """USAGE on the schema and on single functions, where no roles can be created."""
    app = cast.names["nobody"]
    db.execute(f"grant usage on schema durable to {app}")
    db.execute(f"grant execute on function durable.spawn to {app}")
    db.execute(f"grant select on durable.task_list to {app}")
    with Durable(dsn) as client:
        client.migrate()
    with cast.roles.session(app) as session:
        session.execute("select durable.spawn('open', 'x')")
        session.execute("select from durable.task_list")


def test_advisory_locks_of_other_roles_block_neither_recovery_nor_upgrade(
    dsn: str, db: psycopg.Connection, cast: Cast
) -> None:
    """Any role may take any advisory lock; durable waits for none."""
    names = ["house", "migrate", "work", "results", "news"]
    with cast.roles.session(cast.names["nobody"]) as session:
        for name in names:
            key = f"durable.{name}"
            session.execute("select pg_advisory_lock(hashtext(%s))", [key])
            for queue in ("open", "default"):
                locked = "select pg_advisory_lock(hashtext(%s), hashtext(%s))"
                session.execute(locked, [key, queue])
        task_id = cast.tasks["open"]
        past = "update durable.tasks set lease_expires_at = now() where task_id = %s"
        db.execute(past, [task_id])
        assert db.execute(
            "select (durable.run_maintenance('open')).leases"
        ).fetchone() == (1,)
        with Durable(make_conninfo(dsn, options="-c statement_timeout=20s")) as app:
            app.migrate()
            assert app.spawn("x").created


async def test_ends_a_worker_whose_role_lost_access_to_the_queue(
    dsn: str, db: psycopg.Connection, cast: Cast
) -> None:
    async def work() -> None:
        address = as_role(dsn, cast.names["mailer"])
        async with (
            AsyncDurable(address, queue="listed") as app,
            app.worker(poll=0.05) as worker,
        ):
            roles = json.dumps({"roles": [cast.names["client"]]})
            db.execute("select durable.create_queue('listed', %s::jsonb)", [roles])
            while True:
                await worker.drain()

    with pytest.raises(Forbidden, match="listed"):
        await work()
    held = "select 1 from durable.tasks where queue = 'listed' and state = 'running'"
    assert db.execute(held).rowcount == 1
