begin;
\ir _setup.sql
select plan(61);

-- Returns the next fires in UTC as one line.
create function pg_temp.fires(cron text, zone text, after text, count integer)
returns text
language sql
as $$
  select string_agg(to_char(next_fires at time zone 'UTC', 'YY-MM-DD HH24:MI:SS'), ', ')
  from durable.next_fires(cron, zone, (after || '+00')::timestamptz, count);
$$;

-- fields

select is(pg_temp.fires(cron, 'UTC', '2026-11-01 12:00:30', 3), fires, format('"%s"', cron))
from (values
  ('* * * * *',               '26-11-01 12:01:00, 26-11-01 12:02:00, 26-11-01 12:03:00'),
  ('5 4 * * *',               '26-11-02 04:05:00, 26-11-03 04:05:00, 26-11-04 04:05:00'),
  ('5/20 * * * *',            '26-11-01 12:05:00, 26-11-01 12:25:00, 26-11-01 12:45:00'),
  ('10-30/10,59 12 * * *',    '26-11-01 12:10:00, 26-11-01 12:20:00, 26-11-01 12:30:00'),
  ('*/25 12 * * *',           '26-11-01 12:25:00, 26-11-01 12:50:00, 26-11-02 12:00:00'),
  ('0 9 * JAN-mar Mon-fri',   '27-01-01 09:00:00, 27-01-04 09:00:00, 27-01-05 09:00:00'),
  ('0 0 * * sun',             '26-11-08 00:00:00, 26-11-15 00:00:00, 26-11-22 00:00:00'),
  ('0 0 * * 7',               '26-11-08 00:00:00, 26-11-15 00:00:00, 26-11-22 00:00:00'),
  ('0 0 31 * *',              '26-12-31 00:00:00, 27-01-31 00:00:00, 27-03-31 00:00:00'),
  ('0 0 29 2 *',              '28-02-29 00:00:00, 32-02-29 00:00:00, 36-02-29 00:00:00'),
  ('0 0 29 2 */7',            '32-02-29 00:00:00, 60-02-29 00:00:00, 88-02-29 00:00:00'),
  ('0 0 30 2 *',              null),
  ('*/20 * * * * *',          '26-11-01 12:00:40, 26-11-01 12:01:00, 26-11-01 12:01:20'),
  ('15 30 12 * * *',          '26-11-01 12:30:15, 26-11-02 12:30:15, 26-11-03 12:30:15'),
  ('  0  3  *  *  *  ',       '26-11-02 03:00:00, 26-11-03 03:00:00, 26-11-04 03:00:00'),
  ('@hourly',                 '26-11-01 13:00:00, 26-11-01 14:00:00, 26-11-01 15:00:00'),
  ('@daily',                  '26-11-02 00:00:00, 26-11-03 00:00:00, 26-11-04 00:00:00'),
  ('@Midnight',               '26-11-02 00:00:00, 26-11-03 00:00:00, 26-11-04 00:00:00'),
  ('@weekly',                 '26-11-08 00:00:00, 26-11-15 00:00:00, 26-11-22 00:00:00'),
  ('@monthly',                '26-12-01 00:00:00, 27-01-01 00:00:00, 27-02-01 00:00:00'),
  ('@yearly',                 '27-01-01 00:00:00, 28-01-01 00:00:00, 29-01-01 00:00:00'),
  ('@annually',               '27-01-01 00:00:00, 28-01-01 00:00:00, 29-01-01 00:00:00')
) as cases (cron, fires);

-- both days

select is(pg_temp.fires(cron, 'UTC', '2026-11-01 00:00:00', 3), fires, what)
from (values
  ('0 0 13 * 5',   '26-11-06 00:00:00, 26-11-13 00:00:00, 26-11-20 00:00:00', 'a restricted day or weekday: either'),
  ('0 0 13 * */7', '26-12-13 00:00:00, 27-06-13 00:00:00, 28-02-13 00:00:00', 'a weekday with *: both'),
  ('0 0 */15 * 1', '26-11-16 00:00:00, 27-02-01 00:00:00, 27-03-01 00:00:00', 'a day with *: both')
) as cases (cron, fires, what);

-- when the clocks are changed

select is(pg_temp.fires(cron, zone, after, 3), fires, format('%s, "%s": %s', zone, cron, what))
from (values
  ('30 2 * * *',   'Europe/Vienna', '2026-03-28 00:30:00',
   '26-03-28 01:30:00, 26-03-29 01:00:00, 26-03-30 00:30:00', 'a skipped time is the first after the gap'),
  ('0 2,3 * * *',  'Europe/Vienna', '2026-03-28 20:00:00',
   '26-03-29 01:00:00, 26-03-30 00:00:00, 26-03-30 01:00:00', 'once, where another time is that, too'),
  ('30 2 * * *',   'Europe/Vienna', '2026-10-24 20:00:00',
   '26-10-25 00:30:00, 26-10-26 01:30:00, 26-10-27 01:30:00', 'of a time that comes twice the first counts'),
  ('30 2 * * *',   'Europe/Vienna', '2026-10-25 00:40:00',
   '26-10-26 01:30:00, 26-10-27 01:30:00, 26-10-28 01:30:00', 'also if asked between the two'),
  ('*/30 2 * * *', 'Europe/Vienna', '2026-03-28 20:00:00',
   '26-03-30 00:00:00, 26-03-30 00:30:00, 26-03-31 00:00:00', 'with *, a skipped hour has no fire'),
  ('*/30 2 * * *', 'Europe/Vienna', '2026-10-25 00:10:00',
   '26-10-25 00:30:00, 26-10-25 01:00:00, 26-10-25 01:30:00', 'with *, a repeated hour has them again'),
  ('0 * * * *',    'Europe/Vienna', '2026-10-24 23:30:00',
   '26-10-25 00:00:00, 26-10-25 01:00:00, 26-10-25 02:00:00', 'every hour is every hour'),
  ('0 30 2 * * *', 'Europe/Vienna', '2026-03-28 20:00:00',
   '26-03-30 00:30:00, 26-03-31 00:30:00, 26-04-01 00:30:00', 'with seconds, a skipped time has no fire'),
  ('0 30 2 * * *', 'Europe/Vienna', '2026-10-24 20:00:00',
   '26-10-25 00:30:00, 26-10-25 01:30:00, 26-10-26 01:30:00', 'with seconds, a repeated one fires again'),
  ('45 1 * * *',   'Australia/Lord_Howe', '2026-04-04 05:00:00',
   '26-04-04 14:45:00, 26-04-05 15:15:00, 26-04-06 15:15:00', 'half an hour that comes twice'),
  ('15 2 * * *',   'Australia/Lord_Howe', '2026-10-03 05:00:00',
   '26-10-03 15:30:00, 26-10-04 15:15:00, 26-10-05 15:15:00', 'half an hour that is skipped'),
  ('0 0 * * *',    'America/Sao_Paulo', '2018-11-03 20:00:00',
   '18-11-04 03:00:00, 18-11-05 02:00:00, 18-11-06 02:00:00', 'midnight is skipped'),
  ('30 23 * * *',  'America/Sao_Paulo', '2018-02-17 18:00:00',
   '18-02-18 01:30:00, 18-02-19 02:30:00, 18-02-20 02:30:00', 'an hour before midnight comes twice'),
  ('0 9 30 12 *',  'Pacific/Apia', '2011-12-28 00:00:00',
   '11-12-30 10:00:00, 12-12-29 19:00:00, 13-12-29 19:00:00', 'a whole day is skipped'),
  ('30 5 * * *',   'Asia/Kolkata', '2026-11-01 00:00:00',
   '26-11-02 00:00:00, 26-11-03 00:00:00, 26-11-04 00:00:00', 'an offset of half an hour')
) as cases (cron, zone, after, fires, what);

-- arguments

select is((select array_agg(next_fires) from durable.next_fires('@hourly')),
  array[at(3600), at(7200), at(10800), at(14400), at(18000)], 'next_fires() returns five in UTC from now on');
select is((select next_fires from durable.next_fires('0 0 * * *', 'UTC', at(-0.5), 1)), at(0),
  'a fraction of a second before a fire');
select is((select next_fires from durable.next_fires('0 0 * * *', 'UTC', at(0), 1)), at(86400),
  'next_fires() excludes the moment itself');

create function pg_temp.refusal(cron text, zone text default 'UTC', count integer default 1)
returns text
language plpgsql
as $$
declare
  _hint text;
begin
  perform durable.next_fires(cron, zone, null, count);
  return 'none';
exception when invalid_parameter_value then
  get stacked diagnostics _hint = pg_exception_hint;
  return split_part(_hint, ' ', 1) || ' ' || split_part(_hint, ' ', 2);
end;
$$;
select is(
  (select string_agg(pg_temp.refusal(cron), ', ' order by cron) from unnest(array[
    '', '* * * *', '* * * * * * *', '@reboot', 'hourly']) as cron),
  'Pass minute,, Pass minute,, Pass minute,, Pass minute,, Pass minute,',
  'anything but five or six fields is refused');
select is_empty(
  $$ select cron from unnest(array['60 * * * *', '* 24 * * *', '* * 0 * *', '* * 32 * *', '* * * 13 *', '* * * 0 *',
       '* * * * 8', '-1 * * * *', '5-1 * * * *', '*/0 * * * *', ', * * * *', '1, * * * *', '1-2-3 * * * *', 'a * * * *',
       '* * * * MONDAY', '* MON * * *', '* * * JAN *x', '60 * * * * *', '1.5 * * * *', '*5 * * * *', '** * * * *'])
       as cron where pg_temp.refusal(cron) <> 'Pass *,' $$,
  'and fields that are none');
select is_empty(
  $$ select cron from unnest(array['0 0 L * *', '0 0 LW * *', '0 0 15W * *', '0 0 * * 5L', '0 0 * * 5#2', '0 0 ? * 1'])
       as cron where pg_temp.refusal(cron) <> 'L, W,' $$,
  'L, W, # and ? are refused with a hint of their own');
select is(pg_temp.refusal('* * * * *', zone), 'Pass a', format('the time zone %s is unknown', zone))
from unnest(array['Mars/Base', 'Mars/Base1', 'UTC+1', 'X5']) as zone;
select is(pg_temp.refusal('* * * * *', zone), 'none', format('the time zone %s is known', zone))
from unnest(array['America/Argentina/Buenos_Aires', 'Etc/GMT-14', 'America/Port-au-Prince', 'EST5EDT']) as zone;
select is(pg_temp.refusal('* * * * *', 'europe/vienna'), 'Pass "Europe/Vienna".', 'another spelling gets the right one');
select is(pg_temp.refusal('* * * * *', 'CEST'), 'Pass a', 'an abbreviation is refused');
select is(pg_temp.refusal('* * * * *', null), 'Pass a', 'so is none');
select is(pg_temp.refusal('* * * * *', 'UTC', 0), 'Pass a', 'and a count of 0');
select is(pg_temp.refusal('* * * * *', 'UTC', 10001), 'Pass a', 'or of more than 10,000');

set local timezone = 'America/New_York';
select is(pg_temp.fires('30 2 * * *', 'Europe/Vienna', '2026-10-24 20:00:00', 2),
  '26-10-25 00:30:00, 26-10-26 01:30:00', 'the time zone of the session does not matter');
select is(pg_temp.fires('30 1 * * *', 'UTC', '2026-03-08 06:59:59', 1),
  '26-03-09 01:30:00', 'nor its changes of the clock');
reset timezone;

select * from finish();
rollback;
