"""When a worker counts as stuck: never for what its SuperNode, which was started anew, cannot have heard."""

from types import SimpleNamespace

import pytest

from client.supervisor import READY_S, _Site
from fed_diffmic.transport.contact import Contact

HOUR, BEAT_S = 3600.0, 10.0


def follow(worker_started: float, node_started: float, worker: float, now: float) -> list[str]:
    """What the supervisor ends when it looks once at such an account."""
    ended: list[str] = []

    def keeper(name: str, started: float) -> SimpleNamespace:
        return SimpleNamespace(started=started, child=object(), failures=0, kill=lambda why: ended.append(name))

    site = SimpleNamespace(
        config=SimpleNamespace(coordinator=SimpleNamespace(heartbeat_s=BEAT_S)), last_contact=0.0, problem="",
        connected=True, said=now, worker=keeper("worker", worker_started), node=keeper("SuperNode", node_started),
    )  # fmt: skip
    _Site._follow(site, Contact(pid=1, alive=now, worker=worker, connected=True), now)  # type: ignore[arg-type]
    return ended


@pytest.mark.parametrize(
    ("worker_started", "node_started", "worker", "now", "ended"),
    [
        (0.0, HOUR, 0.0, HOUR + 5, []),  # an old worker, a SuperNode that just began
        (0.0, HOUR, 0.0, HOUR + READY_S + 1, ["worker"]),  # and it never spoke to it
        (0.0, HOUR, HOUR + 5, HOUR + 20, []),
        (0.0, HOUR, HOUR + 5, HOUR + 5 + 2 * BEAT_S + 1, ["worker"]),  # it spoke, and fell silent
        (HOUR, 0.0, HOUR - 1, HOUR + 100, []),  # a new worker that still loads
        (HOUR, 0.0, HOUR - 1, HOUR + READY_S + 1, ["worker"]),
    ],
)
def test_a_worker_is_given_the_time_that_it_needs(worker_started, node_started, worker, now, ended):
    assert follow(worker_started, node_started, worker, now) == ended
