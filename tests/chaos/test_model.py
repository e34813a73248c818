"""Whatever clients, workers and the clock do in turn, the engine does what it promises.

The promises are a program of their own: tests/chaos/model/specification.py.
"""

from __future__ import annotations

from random import Random

import psycopg
import pytest

from tests.chaos.model.judge import play
from tests.support.survival import Share, Survived


@pytest.mark.slow
@pytest.mark.timeout(1500)  # it takes minutes to make a program short that failed
def test_does_what_the_model_does(
    db: psycopg.Connection, random: Random, share: Share, survived: Survived
) -> None:
    count = play(
        db,
        random,
        programs=share(quick=60, long=600),
        steps=share(quick=40, long=100),
    )
    survived("steps of the model", count["steps"])
