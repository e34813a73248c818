"""Every fault of a database and its clients, at random, under load.

    python -m tests.chaos.soak --minutes 3 --seed 7

A primary with a synchronous standby, a network that is cut and falls silent, workers
and clients that are killed and stopped. Then the load ends, and the ledger is checked.
Prints counts of the survived faults; exits with 1 and the seed after a failure.

DURABLE_SURVIVED      a page in which to put the counts
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import psycopg

from tests.chaos import faults
from tests.chaos.cluster import Cluster
from tests.chaos.proxy import CUTS, Proxy
from tests.chaos.scene import Scene
from tests.support.databases import install
from tests.support.survival import publish

__all__ = ["soak"]


class Storm:
    """All faults, each by the name under which it is counted."""

    def __init__(
        self, cluster: Cluster, proxies: Sequence[Proxy], scene: Scene, random: Random
    ) -> None:
        self._cluster = cluster
        self._proxies = proxies
        self._scene = scene
        self._random = random
        self.count: Counter[str] = Counter()
        self._faults: dict[str, tuple[int, Callable[[], object]]] = {
            "terminated backends": (6, self._terminate),
            "connections cut in the middle of a call": (8, self._cut),
            "cuts of all connections at once": (2, self._cut_all),
            "connections that fell silent": (2, self._hush),
            "kills of a worker": (3, scene.kill_worker),
            "kills of a client": (2, scene.kill_client),
            "workers stopped for longer than a lease": (1, scene.stop_worker),
            "restarts of the server": (1, self._restart),
            "crashes of the server": (1, self._crash),
            "kills of the server": (1, self._kill),
            "failovers to a standby": (1, self._fail_over),
            "times without a free connection": (1, self._exhaust),
            "times of reading only": (1, self._only_read),
        }
        self._once = random.sample(list(self._faults), len(self._faults))

    def strike(self) -> None:
        """Inject one of them, each once at first, and check that all continues."""
        name = self._once.pop() if self._once else self._any()
        done = self._faults[name][1]()
        self._scene.goes_on()
        self.count[name] += done if isinstance(done, int) else 1

    def _any(self) -> str:
        weights = [weight for weight, _ in self._faults.values()]
        return self._random.choices(list(self._faults), weights)[0]

    def _terminate(self) -> int:
        return faults.terminate_one(self._cluster.primary.conninfo(), self._random)

    def _cut(self) -> int:
        how = self._random.choice(CUTS)
        before = self._cuts()
        for proxy in self._proxies:
            proxy.cut(how)
        self._scene.goes_on()
        return self._cuts() - before

    def _cuts(self) -> int:
        return sum(proxy.count.total() for proxy in self._proxies)

    def _cut_all(self) -> None:
        for proxy in self._proxies:
            proxy.cut_all()

    def _hush(self) -> int:
        return sum(proxy.hush_some(2) for proxy in self._proxies)

    def _restart(self) -> None:
        self._cluster.primary.restart("fast")

    def _crash(self) -> None:
        self._cluster.primary.restart("immediate")

    def _kill(self) -> None:
        faults.kill_server(self._cluster.primary)
        self._cluster.primary.restart()

    def _fail_over(self) -> None:
        self._cluster.fail_over()
        self._scene.goes_on()
        self._cluster.add_standby()

    def _exhaust(self) -> None:
        with faults.exhausted(self._cluster.primary.conninfo(), self._random):
            pass

    def _only_read(self) -> None:
        with faults.only_reading(self._cluster.primary.conninfo()):
            time.sleep(0.5)


def soak(
    seconds: float,
    random: Random,
    directory: Path,
    say: Callable[[str], object] = print,
) -> Counter[str]:
    """Run for so many seconds, and return the counts; raise the first failure."""
    with contextlib.ExitStack() as running:
        cluster = running.enter_context(Cluster())
        with psycopg.connect(cluster.conninfo(), autocommit=True) as db:
            install(db)
        proxies = [
            running.enter_context(Proxy(address, Random(random.random())))
            for address in cluster.addresses
        ]
        conninfo = cluster.conninfo([proxy.port for proxy in proxies])
        with Scene(directory, conninfo, cluster.conninfo(), random) as scene:
            storm = Storm(cluster, proxies, scene, random)
            scene.start(workers=2, clients=2)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                storm.strike()
                left = max(end - time.monotonic(), 0)
                say(f"{left:6.0f} s left, {storm.count.total()} faults")
        for log in cluster.logs():
            assert "deadlock detected" not in log
        return Counter({**scene.counts, **storm.count})


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="All faults at random, under load.")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", default=str(secrets.randbelow(10**6)))
    chosen = parser.parse_args()
    print(f"soak: {chosen.minutes:g} minutes, --seed {chosen.seed}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as directory:
            counts = soak(chosen.minutes * 60, Random(chosen.seed), Path(directory))
    except BaseException:  # noqa: BLE001 - the seed is what counts
        traceback.print_exc()
        print(f"NOT survived, --seed {chosen.seed}", flush=True)
        return 1
    for what, number in sorted(counts.items()):
        print(f"{number:>12,} {what}")
    if page := os.environ.get("DURABLE_SURVIVED"):
        publish(Path(page), "soak", counts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
