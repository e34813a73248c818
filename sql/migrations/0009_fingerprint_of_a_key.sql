alter table durable.idempotency_keys add column fingerprint text collate "C";

comment on column durable.idempotency_keys.fingerprint is 'By what its params are told again, where the same ones are stored as other bytes each time; null: by themselves.';

alter type durable._spawn_options add attribute fingerprint text[];
