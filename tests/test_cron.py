"""Cron expressions fire when another implementation of Debian's cron says so."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import psycopg
from cronsim import CronSim, CronSimError

CASES = 3_000
FIRES = 4
# Where midnight is skipped, or half an hour, cronsim passes over times that there are;
# pgtap/cron.sql has those cases.
ZONES = [
    *["UTC", "Europe/Vienna", "America/New_York", "America/St_Johns"],
    *["Asia/Kolkata", "Pacific/Apia", "Australia/Sydney", "Africa/Casablanca"],
]
# Shortly before the clocks of one of these zones change, and other days.
STARTS = [
    *[datetime(2026, 3, 28, 20), datetime(2026, 10, 24, 20), datetime(2026, 3, 7, 20)],
    *[datetime(2026, 10, 31, 20), datetime(2026, 4, 4, 5), datetime(2026, 10, 3, 8)],
    *[datetime(2026, 2, 14, 12), datetime(2026, 3, 21, 12), datetime(2011, 12, 28)],
    *[datetime(2026, 6, 1), datetime(2027, 2, 27), datetime(2027, 12, 31, 12)],
]
ASK = """
with recursive cases (number, cron, zone, at) as (
  select * from unnest(%s::integer[], %s::text[], %s::text[], %s::timestamptz[])
), fires (number, place, at) as (
  select number, 0, at from cases
  union all
  select number, place + 1,
    durable._next_fire(durable._parsed_cron(cron), zone, fires.at)
  from fires join cases using (number)
  where place < %s and fires.at is not null
)
select number, array_agg(at order by place)
from fires where place > 0 and at is not null
group by number
"""


def field(random: Random, low: int, high: int, *, star: float) -> str:
    """Return one field of an expression."""
    kind = random.random()
    if kind < star:
        return "*"
    if kind < star + 0.15:
        return f"*/{random.choice([2, 5, 7, 15, 20])}"
    if kind < star + 0.3:
        first = random.randint(low, high - 1)
        last = random.randint(first + 1, high)
        step = "" if random.random() < 0.6 else f"/{random.randint(1, 5)}"
        return f"{first}-{last}{step}"
    numbers = [str(random.randint(low, high)) for _ in range(random.randint(1, 3))]
    return ",".join(numbers)


def expression(random: Random) -> str:
    """Return an expression, often with hours in which clocks are changed."""
    often = random.choice(["0", "1", "2", "3", "2", "0-3", "1,2", "*"])
    hour = often if random.random() < 0.6 else field(random, 0, 23, star=0.4)
    fields = [
        field(random, 0, 59, star=0.2),
        hour,
        field(random, 1, 31, star=0.7),
        field(random, 1, 12, star=0.75),
        field(random, 0, 7, star=0.7),
    ]
    if random.random() < 0.15:
        fields = [field(random, 0, 59, star=0.1), *fields]
    return " ".join(fields)


def expected(cron: str, zone: str, at: datetime) -> list[datetime] | None:
    """Return what cronsim says; None if it does not know the expression."""
    try:
        fires = CronSim(cron, at.astimezone(ZoneInfo(zone)))
        told = [fire.astimezone(UTC) for fire in itertools.islice(fires, FIRES)]
    except CronSimError:
        return None
    return list(dict.fromkeys(told))  # where a gap swallows several, it repeats one


def cases(random: Random) -> Iterator[tuple[str, str, datetime, list[datetime]]]:
    while True:
        cron, zone = expression(random), random.choice(ZONES)
        start = random.choice(STARTS).replace(tzinfo=UTC)
        at = start + timedelta(minutes=random.randint(0, 600))
        if told := expected(cron, zone, at):
            yield cron, zone, at, told


def test_fires_when_another_implementation_does(db: psycopg.Connection) -> None:
    chosen = list(itertools.islice(cases(Random(7)), CASES))
    crons, zones, starts, told = (list(column) for column in zip(*chosen, strict=True))
    numbers = list(range(CASES))
    rows = db.execute(ASK, [numbers, crons, zones, starts, FIRES]).fetchall()
    found = {number: [fire.astimezone(UTC) for fire in at] for number, at in rows}
    different = [
        (crons[number], zones[number], str(starts[number]), told[number], found[number])
        for number in numbers
        if found.get(number, [])[: len(told[number])] != told[number]
    ]
    assert different == []
