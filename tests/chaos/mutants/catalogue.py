"""All mutants."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants.families import FAMILY
from tests.chaos.mutants.features import FEATURES
from tests.chaos.mutants.histories import HISTORIES
from tests.chaos.mutants.holding import HOLDING
from tests.chaos.mutants.keeping import KEEPING
from tests.chaos.mutants.limits import LIMITS
from tests.chaos.mutants.mail import MAIL
from tests.chaos.mutants.metrics import METRICS
from tests.chaos.mutants.schedules import SCHEDULES
from tests.chaos.mutants.waiting import WAITING

__all__ = ["MUTANTS"]

MUTANTS: Final = [
    *HOLDING,
    *WAITING,
    *FAMILY,
    *KEEPING,
    *MAIL,
    *FEATURES,
    *HISTORIES,
    *SCHEDULES,
    *LIMITS,
    *METRICS,
]
