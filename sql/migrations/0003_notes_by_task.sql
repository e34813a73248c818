create index notes_task_idx on durable.notes (queue, task_id) where task_id is not null;

comment on index durable.notes_task_idx is 'Cleanup asks whether a task that is over still has something to be done for it.';
