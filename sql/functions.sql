-- The engine, as a table of contents. Files load in this order, but PL/pgSQL
-- binds late: inside a group the order is for the reader.
--
-- No plan may depend on statistics, or on how much a call was given: rows are reached
-- by key or by place, one way that holds for empty and for full tables. So public
-- functions switch off what could walk a table, and pin the generic plan: it is made
-- once a session, where the length of an array would have Postgres plan every call.

-- Ground: the clock, ids, the closed set of errors, checks of what comes in
\ir clock.sql
\ir errors.sql
\ir ids.sql
\ir checks.sql
\ir retry.sql

-- Waking up: who is told when a task finishes, an event is emitted, work arrives
\ir doors.sql
\ir notes.sql
\ir waking.sql
\ir first.sql

-- For everyone: queues, tasks, events, messages, results
\ir queues.sql
\ir spawn.sql
\ir callers.sql
\ir cancel.sql
\ir retry_task.sql
\ir fork.sql
\ir filter.sql
\ir many.sql
\ir results.sql
\ir events.sql
\ir messages.sql
\ir following.sql

-- For workers: hold a task, save what it did, let it wait, let it go
\ir claims.sql
\ir claim_log.sql
\ir versions.sql
\ir fleet.sql
\ir attempts.sql
\ir checkpoints.sql
\ir waits.sql
\ir settling.sql
\ir withdrawing.sql
\ir publishing.sql
\ir children.sql
\ir elsewhere.sql

-- Housekeeping: what nobody asked for but everybody needs
\ir recovery.sql
\ir retention.sql
\ir housekeeping.sql

-- For operators
\ir stats.sql
\ir views.sql
\ir offspring.sql
\ir history.sql

-- What an older version had, and the whole public surface of this one
\ir leftovers.sql
\ir grants.sql
