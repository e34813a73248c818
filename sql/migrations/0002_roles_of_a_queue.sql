alter table durable.queues add column roles text[] collate "C";

comment on table  durable.queues       is 'The namespaces of tasks, how long each keeps what is over, and for whom it is.';
comment on column durable.queues.roles is 'By name, the roles whose members may use it; null: everybody who may call the functions.';
