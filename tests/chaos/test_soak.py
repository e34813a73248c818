"""All faults at once, at random, for some seconds: `make soak` takes minutes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.chaos.ledger import LOST
from tests.chaos.soak import soak
from tests.support.survival import Share, Survived


@pytest.mark.slow
def test_survives_everything_at_once(
    tmp_path: Path, random: Random, share: Share, survived: Survived
) -> None:
    counts = soak(share(quick=4, long=60), random, tmp_path)
    assert counts[LOST] == 0
    for what, number in counts.items():
        survived(what, number)
