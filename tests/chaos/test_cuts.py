"""durable loses and repeats nothing when connections are cut under load."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest

from durable.embedded import Postgres
from tests.chaos import faults
from tests.chaos.proxy import CUTS, Cut, Proxy
from tests.chaos.scene import Scene
from tests.support.survival import Share, Survived
from tests.support.wait import eventually

LISTENERS = {"durable client", "durable work"}
LABELS: dict[Cut, str] = {
    "request lost": "connections cut before a request arrived",
    "under way": "connections cut while a request was under way",
    "answer lost": "connections cut before an answer arrived",
    "half an answer": "connections cut in the middle of an answer",
}


@pytest.mark.slow
def test_loses_nothing_while_its_connections_are_cut(
    own_server: Postgres,
    tmp_path: Path,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    """By the network at every moment of a call, and by the server at any time."""
    direct = own_server.conninfo()
    with (
        Proxy(direct, random) as proxy,
        Scene(tmp_path, proxy.conninfo(), direct, random) as scene,
    ):
        scene.start()
        for turn, how in enumerate(CUTS * share(quick=3, long=36)):
            whose = "client" if turn // len(CUTS) % 2 else None
            proxy.cut(how, whose)
            done = proxy.count[how] + 1
            eventually(partial(has_cut, proxy, how, whose, done), deadline=60)
            survived("terminated backends", faults.terminate_one(direct, random))
            scene.goes_on(more=3)
        survived("cuts of all connections at once", proxy.cut_all() > 0)
        scene.goes_on()
    for cut, number in proxy.count.items():
        survived(LABELS[cut], number)
    for what, number in scene.counts.items():
        survived(what, number)
    assert "deadlock detected" not in (own_server.home / "log").read_text()


def has_cut(proxy: Proxy, how: Cut, whose: str | None, times: int) -> bool:
    """Whether it has.

    An armed connection may have ended otherwise, or only listen, so that no statement
    passes it for minutes: arm another.
    """
    armed = [one.name for one in list(proxy.connections) if one.fault]
    if not set(armed) - LISTENERS:
        proxy.cut(how, whose)
    return proxy.count[how] >= times
