-- Everything lives in one schema; dropping it leaves nothing behind.

create schema durable;

comment on schema durable is
'Durable execution that is nothing but Postgres: tasks whose every step survives
a crash. Call the functions; the tables are private, the views are for looking.';
