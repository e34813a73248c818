"""The engine does what its specification says, for any sequence of calls.

The specification is a program: tests/chaos/model/specification.py.
"""

from __future__ import annotations

from random import Random

import psycopg
import pytest

from tests.chaos.model.judge import play
from tests.support.survival import Share, Survived, is_long

PARTS = 8 if is_long() else 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # shrinking a failed program takes minutes
@pytest.mark.parametrize("part", range(PARTS))
def test_matches_the_model(
    db: psycopg.Connection, random: Random, share: Share, survived: Survived, part: int
) -> None:
    """Each part plays its own programs, chosen by its name."""
    count = play(
        db,
        random,
        programs=share(quick=60, long=75),
        steps=share(quick=40, long=100),
    )
    survived("steps of the model", count["steps"])
