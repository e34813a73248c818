"""durable follows the primary: acknowledged commits survive a failover."""

from __future__ import annotations

from pathlib import Path
from random import Random

import psycopg
import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.scene import Scene
from tests.support.databases import install
from tests.support.survival import Share, Survived


@pytest.mark.slow
def test_loses_nothing_acknowledged_when_a_standby_takes_over(
    tmp_path: Path, random: Random, share: Share, survived: Survived
) -> None:
    """The primary is killed under load; each process finds the next by itself."""
    with Cluster() as cluster:
        with psycopg.connect(cluster.conninfo(), autocommit=True) as db:
            install(db)
        conninfo = cluster.conninfo()
        with Scene(tmp_path, conninfo, conninfo, random) as scene:
            scene.start()
            for turn in range(share(quick=1, long=5)):
                if turn:
                    cluster.add_standby()
                    scene.goes_on()
                cluster.fail_over()
                scene.goes_on()
                survived("failovers to a standby")
        for what, number in scene.counts.items():
            survived(what, number)
