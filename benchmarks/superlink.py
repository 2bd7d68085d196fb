"""What a round costs the SuperLink, by itself: processor seconds of its process, and the requests that it answers.

    python -m benchmarks.superlink [--sites 3] [--rounds 6] [--megabytes 1.9] [--work 0.5]

Our SuperLink as it really runs (TLS, node authentication, guard, database on the disk), stock Flower's connections of
the sites and our grid of the coordinator, all of them threads of this one process: nothing is trained, a site waits for
``--work`` seconds and answers. Each round is one message with the weights to each site (metrics and training asked for
together) and one reply with as many bytes. Processor seconds depend little on who else uses the machine; how often is
asked in vain does, so requests are counted by what they ask.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.consortium_rounds import cpu_seconds
from fed_diffmic.exchange.payload import Payload, encode, pack
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import load_private, make_site_key
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.messages import reply_message
from fed_diffmic.transport.pauses import Pauses
from fed_diffmic.transport.processes import free_port
from fed_diffmic.transport.serverapp import run_server_app
from fed_diffmic.transport.superlink import LinkSettings, RunningLink, start_superlink
from fed_diffmic.transport.supernode import ASK_S
from fed_diffmic.transport.together import JUDGED, joined_message, joined_reply, parts_of

POLL_S, LONGEST_S = 0.1, 0.5
ROUND_S = 300.0
Tensors = dict[str, np.ndarray]


def count(requests: Counter[str]) -> Callable[[], None]:
    """Count every request that leaves this process, by the last part of its path; what ends the counting."""
    import httpx

    send = httpx.Client.send

    def counted(self: httpx.Client, request: httpx.Request, **named: Any) -> httpx.Response:
        requests[request.url.path.rsplit("/", 1)[-1]] += 1
        return send(self, request, **named)

    httpx.Client.send = counted  # type: ignore[method-assign]
    return lambda: setattr(httpx.Client, "send", send)


def site(link: RunningLink, key: Path, tensors: Tensors, work_s: float, over: threading.Event) -> None:
    """A site that answers every request with these tensors, by stock Flower's connection."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
    from flwr.supercore.inflatable.inflatable_utils import (
        inflate_object_from_contents,
        pull_objects,
        push_object_contents_from_iterable,
    )
    from flwr.supernode.fleet_http_connection import http_request_response

    private = load_private(str(key), None)
    keys: Any = (private, private.public_key())
    address = f"localhost:{link.public_port}"
    pauses = Pauses(ASK_S, LONGEST_S)
    with http_request_response(address, False, Path(str(link.settings.ca)).read_bytes(), keys) as calls:
        _, receive, send, _, _, pull_object, push_object, confirm = calls
        while not over.is_set():
            asked = time.monotonic()
            found = receive()
            if found is None:
                getattr(pauses, "waited", lambda _: None)(time.monotonic() - asked)
                over.wait(pauses.next())
                continue
            message, tree = found
            run = message.metadata.run_id
            names = [part.object_id for part in iterate_object_tree(tree)]
            contents = pull_objects(names, partial(pull_object, run))
            confirm(run, tree.object_id)
            request: Any = inflate_object_from_contents(tree.object_id, contents)
            request.metadata.__dict__["_message_id"] = tree.object_id
            parts = parts_of(request)
            over.wait(work_s)
            answers = {
                "evaluate": reply_message(
                    Payload("evaluate.reply", {"metrics": {"auroc": 0.5}}, {}), parts["evaluate"]
                ),
                "train": reply_message(Payload("train.reply", {"loss": 0.5}, tensors), parts["train"]),
            }
            reply = joined_reply(answers, request)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
            missing, session = send(reply, get_object_tree(reply), work_s)
            left = [(name, objects[name]) for name in objects if name in missing]
            push_object_contents_from_iterable(left, partial(push_object, run, session))
            pauses.came()


def rounds(grid: Any, nodes: list[int], tensors: Tensors, number: int, each: Callable[[], None]) -> list[float]:
    """Send and hear so many rounds; seconds of each.

    Args:
        grid: the coordinator's.
        nodes: whom to ask.
        tensors: go out in each round, the first of them changed.
        number: of rounds.
        each: is called after each.
    """
    found = []
    for index in range(number):
        begun = time.monotonic()
        first = next(iter(tensors))
        tensors = {**tensors, first: tensors[first] + 1}
        wires = {
            "evaluate": encode(Payload("evaluate", {"round": index}, tensors), pack(tensors)),
            "train": encode(Payload("train", {"round": index}, {}), pack({})),
        }
        waiting = []
        for node in nodes:
            message = joined_message(wires, node=node, message_type=f"train.{JUDGED.partition('.')[2]}", ttl=600.0,
                                     group=str(index))  # fmt: skip
            waiting += list(grid.push_messages([message]))
        while waiting:
            asked = time.monotonic()
            for reply in grid.pull_messages(waiting):
                assert not reply.has_error(), reply.error
                waiting.remove(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(max(0.0, POLL_S - (time.monotonic() - asked)))
        found.append(time.monotonic() - begun)
        each()
    return found


def measure(folder: Path, sites: int, number: int, megabytes: float, work_s: float) -> str:
    """The figures as a table."""
    from flwr.serverapp import ServerApp

    authority = make_authority(folder / "ca")
    certificate, key = authority.issue_server(["localhost"], ["127.0.0.1"], folder / "server")
    names, roster, texts = [f"site{n}" for n in range(sites)], Roster(), []
    for name in names:
        texts.append(make_site_key(folder / name))
        roster = roster.enrol(name, texts[-1], "Hospital")
    link = start_superlink(LinkSettings(
        folder=str(folder / "link"), host="127.0.0.1", port=free_port(), certificate=str(certificate), key=str(key),
        ca=str(authority.certificate_path), roster=str(roster.save(folder / "roster.json")), new_per_s=1000.0,
    ))  # fmt: skip
    over, requests = threading.Event(), Counter[str]()
    generator = np.random.default_rng(0)
    tensors = {str(n): generator.normal(size=int(megabytes * 1e6 / 40)).astype(np.float32) for n in range(10)}
    at: list[tuple[float, int, Counter[str]]] = []
    try:
        control = Control(link)
        nodes = list(control.register(texts).values())
        threads = [
            threading.Thread(target=site, args=(link, folder / name, tensors, work_s, over), daemon=True)
            for name in names
        ]
        for thread in threads:
            thread.start()
        while sum(node.status == "online" for node in control.nodes()) < sites:
            time.sleep(0.2)
        stop = count(requests)
        app = ServerApp()
        took: list[float] = []

        @app.main()
        def main(grid: Any, context: Any) -> None:
            def each() -> None:
                at.append((cpu_seconds(link.child.pid), sum(requests.values()), requests.copy()))

            took.extend(rounds(grid, nodes, tensors, number, each))

        run_server_app(app, link, control.submit(), {})
        stop()
    finally:
        over.set()
        link.child.kill()
    return table(at, took, sites, megabytes)


def table(at: list[tuple[float, int, Counter[str]]], took: list[float], sites: int, megabytes: float) -> str:
    """Means over the rounds but the first; the smallest and the median of the seconds."""
    rounds_, first, last = len(at) - 1, at[0], at[-1]
    asked = {name: (last[2][name] - first[2][name]) / rounds_ for name in sorted(last[2])}
    rows = [
        ("processor seconds of the SuperLink", f"{(last[0] - first[0]) / rounds_:.2f}"),
        ("requests that it answers", f"{(last[1] - first[1]) / rounds_:.0f}"),
        ("of them", ", ".join(f"{name} {value:.0f}" for name, value in asked.items() if value >= 0.5)),
        ("seconds, the median", f"{statistics.median(took[1:]):.2f}"),
        ("seconds, the smallest", f"{min(took[1:]):.2f}"),
    ]
    head = f"| a round: {sites} sites, {megabytes:g} MB to each and back | |"
    load = os.getloadavg()[0]
    return "\n".join([head, "|---|---|", *(f"| {a} | {b} |" for a, b in rows), "", f"load average {load:.1f}"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--megabytes", type=float, default=1.9)
    parser.add_argument("--work", type=float, default=0.5, help="seconds that a site waits before it answers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(measure(Path(folder), given.sites, given.rounds + 1, given.megabytes, given.work))


if __name__ == "__main__":
    main()
