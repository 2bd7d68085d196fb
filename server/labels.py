"""Asking the sites for their classes and task, where the coordinator's configuration names none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flwr.serverapp import Grid

from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.payload import Payload, pack, request_name
from fed_diffmic.exchange.screening import Expected
from server.exchange import Site
from server.hooks import Hooks
from server.replies import Channel, Events, Request, ask

LABELS = "query.labels"


def agreed_labels(
    grid: Grid,
    events: Events,
    *,
    run: str,
    nodes: int | None,
    deadline: float,
    poll_s: float = 0.1,
    hooks: Hooks | None = None,
    sites: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], str]:
    """Classes, in order, and task that all sites' data have.

    Args:
        grid: Flower's.
        events: where facts go.
        run: identifier quoted by the replies.
        nodes: how many nodes are expected; none: all that are there once their number stands still.
        deadline: monotonic seconds.
        hooks: what a real coordinator adds.
        sites: names of those that take part: where there is a roster, no other site of it is asked, or counted. None:
            whoever is there.

    Raises:
        RoundError: nobody answered in time, or the sites do not agree.
    """
    hooks = hooks or Hooks()

    def takes_part(node: int) -> bool:
        if hooks.names_of_nodes is None:
            return True
        name = hooks.names_of_nodes().get(node)
        return name is not None and (sites is None or name in sites)

    ids = wait_for_nodes(grid, nodes, deadline, poll_s, takes_part)
    header = {"run": run}
    expected = Expected(
        kind="labels.reply",
        header={"run": run, "request": request_name(header)},
        fields={"classes": list, "task": str},
    )
    bound = None if hooks.names_of_nodes is None else hooks.names_of_nodes()
    asked = [Site(hooks.called(node, bound), node) for node in ids]
    requests = [Request(site, Payload("labels", header), expected, pack({})) for site in asked]
    channel = Channel(grid, events, poll_s, hooks)
    outcome = ask(channel, requests, message_type=LABELS, deadline=deadline, facts={})
    found = {(tuple(map(str, r.header["classes"])), r.header["task"]) for r in outcome.replies.values()}
    if len(found) != 1:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(outcome.missing.items()))
        raise RoundError(
            f"{len(found)} different lists of classes came from {len(outcome.replies)} sites ({reasons})",
            "Name the classes and the task: consortium.classes and consortium.task at a coordinator, "
            "dataset.classes and dataset.task in a simulation.",
        )
    return found.pop()


def wait_for_nodes(
    grid: Grid, nodes: int | None, deadline: float, poll_s: float, takes_part: Callable[[int], bool] = lambda _: True
) -> Sequence[int]:
    """Numbers of the nodes that take part, once there are as many as expected, or they stand still for a second."""
    nodes_before: list[int] = []
    while time.monotonic() < deadline:
        now = sorted(filter(takes_part, grid.get_node_ids()))
        if now and (now == nodes_before if nodes is None else len(now) >= nodes):
            return now
        nodes_before = now
        time.sleep(max(0.0, min(poll_s if nodes is not None else 1.0, deadline - time.monotonic())))
    if nodes_before:
        return nodes_before
    raise RoundError("no site is connected", "Start the sites, then resume the run.")
