begin;
\ir _setup.sql
select plan(24);

-- delays

select is(round(durable._retry_delay(retry::jsonb, attempt)::numeric, 6), seconds,
  format('%s: %s s after attempt %s', retry, seconds, attempt))
from (values
  ('{"kind": "fixed"}',                                                              1,    1.0),
  ('{"kind": "fixed", "base_seconds": 5}',                                           1,    5.0),
  ('{"kind": "fixed", "base_seconds": 5}',                                           5000, 5.0),
  ('{"kind": "fixed", "base_seconds": 0}',                                           3,    0.0),
  ('{"kind": "fixed", "base_seconds": 0.25}',                                        3,    0.25),
  ('{"kind": "fixed", "base_seconds": 9, "max_seconds": 4}',                         1,    4.0),
  ('{"kind": "exponential"}',                                                        1,    1.0),
  ('{"kind": "exponential"}',                                                        5,    16.0),
  ('{"kind": "exponential", "base_seconds": 3, "factor": 10}',                       4,    3000.0),
  ('{"kind": "exponential", "base_seconds": 3, "factor": 10, "max_seconds": 500}',   4,    500.0),
  ('{"kind": "exponential", "base_seconds": 2, "factor": 1}',                        5000, 2.0),
  ('{"kind": "exponential", "base_seconds": 1, "factor": 2, "max_seconds": 300}',    5000, 300.0),
  ('{"kind": "exponential", "base_seconds": 1, "factor": 1e10, "max_seconds": 1e10}', 2147483647, 10000000000.0),
  ('{"kind": "exponential", "base_seconds": 1e10, "factor": 1e10}',                  2147483647, 31536000.0),
  ('{"kind": "exponential", "base_seconds": 0}',                                     5000, 0.0)
) as delayed (retry, attempt, seconds);

select ok(
  bool_and(delay between 5 and 10) and max(delay) - min(delay) > 3 and avg(delay) between 7 and 8,
  'jitter subtracts up to half of a delay, evenly')
from (
  select durable._retry_delay('{"kind": "fixed", "base_seconds": 10, "jitter": true}', 1)
  from generate_series(1, 2000)
) as delays (delay);
select ok(bool_and(delay between 150 and 300), 'jitter never exceeds the maximum')
from (
  select durable._retry_delay('{"kind": "exponential", "max_seconds": 300, "jitter": true}', 5000)
  from generate_series(1, 1000)
) as delays (delay);
select ok(
  bool_and(delay between least(2 ^ (attempt - 1), 300) / 2 and least(2 ^ (attempt - 1), 300)),
  'a task without a retry strategy waits 1, 2, 4 ... 300 seconds, with jitter')
from generate_series(1, 40) as attempts (attempt)
cross join lateral (select durable._retry_delay(null, attempt)) as delays (delay);

-- limits

select is(durable._may_retry(retry::jsonb, attempt, most), expected,
  format('%s, attempt %s of %s: %s', coalesce(retry, 'no strategy'), attempt,
    coalesce(most::text, 'any'),
    case when expected then 'another' else 'the last' end))
from (values
  (null,                2,    3,    true),
  (null,                3,    3,    false),
  (null,                5000, null, true),
  ('{"kind": "none"}',  1,    3,    false),
  ('{"kind": "none"}',  1,    null, false),
  ('{"kind": "fixed"}', 1,    1,    false)
) as attempts (retry, attempt, most, expected);

select * from finish();
rollback;
