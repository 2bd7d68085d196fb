"""Seconds from start to the first round, and what a round costs beyond the sites' own work.

Everything is read from what the processes write anyway: the coordinator's events and audit log, each site's audit log.
Wall time depends on who else uses the machine; CPU seconds hardly do, so both are printed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.consortium_watch import everybody
from benchmarks.tls_copy import copied
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.exchange.payload import Limits, Payload, encode, pack
from fed_diffmic.provision.keys import load_private, make_site_key
from fed_diffmic.transport.messages import from_record, to_record
from server.checkpoints import CheckpointStore
from tests.consortium.harness import Consortium
from tests.consortium.programs import Lines, wait
from tests.consortium.settings import SITES, final_weights, simulate, training, write_data

ROUNDS = 6
DONE_S = 600.0


def seconds(line: dict[str, Any]) -> float:
    """Since the epoch."""
    return datetime.fromisoformat(line["time"]).timestamp()


def cpu_seconds(pid: int) -> float:
    """Of one process, all its threads, since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(made: Consortium) -> dict[str, float]:
    """CPU seconds of each role, all sites together."""
    found: dict[str, float] = {}
    for held in everybody(made):
        found[held.role] = found.get(held.role, 0.0) + cpu_seconds(held.pid)
    return found


def measure_rounds(folder: Path, heartbeat_s: float, exchanges: str = "auto") -> str:
    """Run a consortium once, all four commands started together; the tables."""
    write_data(folder / "data")
    common = training(rounds=ROUNDS)
    reference = final_weights(simulate(folder / "undisturbed", folder / "data", common))
    simulated = Lines(folder / "undisturbed" / "simulation" / "events.jsonl").read()
    made = Consortium(
        folder / "consortium", folder / "data", common, heartbeat_s=heartbeat_s, way={"poll_s": 0.5},
        run={"deadline_s": DONE_S, "join_s": DONE_S, "exchanges": exchanges},
    )  # fmt: skip
    try:
        begun = time.time()
        server = made.start_server()
        for site in SITES:
            made.start_site(site)
        ready: dict[str, float] = {}

        def round_begins() -> bool:
            for site in SITES:
                node = made.site_state(site)["node"]
                if node.get("connected") and site not in ready:
                    ready[site] = time.time() - begun
            return any(event["kind"] == "round_started" for event in made.events.read())

        wait("the first round", round_begins, DONE_S, 0.05)
        at_start = spent(made)
        since = len(made.events.seen)

        def last_round() -> bool:
            return sum(e["kind"] == "round_done" for e in made.events.read()[since:]) >= ROUNDS

        wait("the last round", last_round, DONE_S, 0.02)
        at_end = spent(made)
        assert server.wait(DONE_S) == 0, server.said()[-2000:]
        assert final_weights(made.run_dir) == reference
        made.stop_sites()
        parts = [started(made, begun, ready, at_start), rounds(made, simulated), copy(made), cpu(at_start, at_end)]
        parts.append(pieces(made))
        load = os.getloadavg()
        parts.append(f"{os.cpu_count()} cores; load average in the end: {load[0]:.1f} (1 min), {load[2]:.1f} (15 min)")
        return "\n\n".join(parts)
    finally:
        made.end()


def started(made: Consortium, begun: float, ready: dict[str, float], cpu_s: dict[str, float]) -> str:
    """When what had happened, from the start of the four commands."""
    first: dict[str, float] = {}
    for event in made.events.read():
        first.setdefault(event["kind"], seconds(event) - begun)
    rows = [
        ("coordinator: its program is loaded", first["run_started"]),
        ("SuperLink answers on both listeners", first["listening"]),
        ("Flower run submitted, ServerApp begins", first["federation_started"]),
        ("first site's SuperNode is connected", min(ready.values())),
        ("last site's SuperNode is connected", max(ready.values())),
        ("last site said who it is (its worker has loaded its program and its images)", first["stage_started"]),
        ("the first round begins", first["round_started"]),
    ]
    lines = ["| from the start of all four commands | s |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in rows]
    total = sum(cpu_s.values())
    by_role = ", ".join(f"{role} {value:.1f}" for role, value in sorted(cpu_s.items()))
    return "\n".join([*lines, "", f"CPU seconds until then: {total:.1f} ({by_role}; three sites together)"])


def rounds(made: Consortium, simulated: list[dict[str, Any]]) -> str:
    """Each phase of a round, median over the guidance rounds but the first, which also brings the base."""
    audit, events = made.audit.read(), made.events.read()
    sites = {site: Lines(made.site_folder(site) / "audit.jsonl").read() for site in SITES}
    table: dict[str, list[float]] = {}
    for number in range(2, ROUNDS):  # the last one is judged by a message of its own in any case
        for name, value in one_round(audit, events, sites, number).items():
            table.setdefault(name, []).append(value)
    lines = [f"| a round ({ROUNDS - 2} rounds) | median s | smallest |", "|---|---|---|"]
    lines += [f"| {name} | {statistics.median(v):.2f} | {min(v):.2f} |" for name, v in table.items()]
    alone = [e["seconds"] for e in simulated if e["kind"] == "round_done" and e["stage"] == "guidance"][1:]
    lines.append(f"| the same round in one process, three sites in turn | {statistics.median(alone):.2f} |"
                 f" {min(alone):.2f} |")  # fmt: skip
    return "\n".join(lines)


def one_round(
    audit: list[dict[str, Any]], events: list[dict[str, Any]], sites: dict[str, list[dict[str, Any]]], number: int
) -> dict[str, float]:
    """Seconds of each phase of a guidance round; of what sites do at once, the one that ended last counts."""

    def lines(log: list[dict[str, Any]], kind: str, task: str, index: int) -> list[dict[str, Any]]:
        found = [x for x in log if x["kind"] == kind and place(x["facts"]) == ("guidance", index)]
        return [x for x in found if x["facts"].get("task") == task or x["facts"].get("reply") == f"{task}.reply"]

    begun = next(seconds(e) for e in events if e["kind"] == "round_started" and place(e) == ("guidance", number))
    done = next(seconds(x) for x in audit if x["kind"] == "checkpoint" and place(x["facts"]) == ("guidance", number))
    before = max(seconds(x) for x in lines(audit, "request", "evaluate", number - 1))
    joined = before > begun  # the metrics of the round before are asked for with this one's training
    messages = [("evaluate", number - 1, "train", number)] if joined else []
    messages += [] if joined else [("train", number, "train", number), ("evaluate", number, "evaluate", number)]
    found: dict[str, float] = {}
    at, asked, answered, own = begun, 0.0, 0.0, 0.0
    for first, of_first, last, of_last in messages:
        request = {x["facts"]["site"]: seconds(x) for x in lines(audit, "request", last, of_last)}
        reply = {x["facts"]["site"]: seconds(x) for x in lines(audit, "reply", last, of_last)}
        latest = max(reply, key=reply.__getitem__)
        begins = seconds(lines(sites[latest], "task", first, of_first)[-1])
        ends = seconds(lines(sites[latest], "payload", last, of_last)[-1])
        word = "evaluation and training" if joined else "training" if last == "train" else "evaluation"
        since = "updates are there: aggregate, pack" if last == "evaluate" else "round begins"
        found[f"coordinator: {since}, until the {word}'s last request is sent"] = max(request.values()) - at
        found[f"{word}: request on its way, until the site's worker has it"] = begins - request[latest]
        found[f"{word}: the site's work, policy and audit included"] = ends - begins
        found[f"{word}: reply on its way, until the coordinator has judged it"] = reply[latest] - ends
        own += max(request.values()) - at
        asked, answered = asked + begins - request[latest], answered + reply[latest] - ends
        at = reply[latest]
    rest = "aggregate, " if joined else "metrics, "
    found[f"coordinator: {rest}checkpoint, audit, until the round is kept"] = done - at
    own += done - at
    found["**the whole round**"] = done - begun
    found["**of it the coordinator alone** (sites wait)"] = own
    found["**of it on the way** (Flower: polls, hops, its database)"] = asked + answered
    return found


def copy(made: Consortium) -> str:
    """What a copy of a round's bytes over loopback TLS takes."""
    row = next(e for e in made.events.read() if e["kind"] == "round_done" and place(e) == ("guidance", 3))
    each = int(row["bytes_sent"]) // (2 * len(SITES))
    server = yaml.safe_load(made.server_yaml.read_text(encoding="utf-8"))["security"]
    ways = [Path(server[name]) for name in ("certificate", "key", "ca")]
    found = [copied(*ways, down=each, up=each, sites=len(SITES)) for _ in range(5)]
    wall, own = (statistics.median(side) for side in zip(*found, strict=True))
    return (
        f"A plain copy of these bytes over loopback TLS ({each / 1e6:.2f} MB to each of {len(SITES)} sites and as much"
        f" back): {wall:.3f} s, {own:.3f} CPU s, both ends"
    )


def place(facts: dict[str, Any]) -> tuple[str, int]:
    """Stage and round."""
    return str(facts.get("stage", "")), int(facts.get("round", 0) or 0)


def cpu(before: dict[str, float], after: dict[str, float]) -> str:
    """CPU seconds a round."""
    lines = ["| CPU a round, three sites together | s |", "|---|---|"]
    lines += [f"| {role} | {(after[role] - before.get(role, 0.0)) / ROUNDS:.2f} |" for role in sorted(after)]
    return "\n".join(lines)


def pieces(made: Consortium) -> str:
    """The coordinator's own steps, each alone, on this run's tensors (the median of some, CPU seconds)."""
    store = CheckpointStore(made.run_dir)
    state = store.load()
    assert state is not None
    tensors = state.results["guidance"]
    payload = Payload("train", {"run": "r"}, tensors)
    wire = encode(payload, pack(tensors))
    record = to_record(wire)
    with tempfile.TemporaryDirectory() as scratch:
        make_site_key(Path(scratch) / "key")
        log = AuditLog(Path(scratch) / "audit.jsonl", load_private(str(Path(scratch) / "key")), owner="coordinator")
        copy = CheckpointStore(Path(scratch) / "run")
        copy.checkpoints.mkdir(parents=True)

        def save() -> None:
            state.results["guidance"] = {name: value.copy() for name, value in tensors.items()}
            first = next(iter(state.results["guidance"]))
            state.results["guidance"][first].flat[0] += len(list(copy.checkpoints.iterdir())) + 1
            copy.save(state)

        rows = [
            (f"pack and encode {payload.tensor_bytes / 1e6:.1f} MB (once a request for all sites)",
             clock(lambda: to_record(encode(payload, pack(tensors))))),
            ("decode and check a reply of that size", clock(lambda: from_record(record, Limits(2**32)))),
            ("a checkpoint of that size, flushed to disk", clock(save)),
            ("a line of the audit log, signed and flushed to disk (some ten a round)",
             clock(lambda: log.append("reply", run="r", stage="guidance", round=1))),
        ]  # fmt: skip
    lines = ["| a step of the coordinator, alone | CPU s | wall s |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {own:.4f} | {wall:.4f} |" for name, (own, wall) in rows)])


def clock(step: Callable[[], object], times: int = 15) -> tuple[float, float]:
    """Median CPU and wall seconds of a step."""
    step()
    found = []
    for _ in range(times):
        own, wall = time.process_time(), time.perf_counter()
        step()
        found.append((time.process_time() - own, time.perf_counter() - wall))
    return statistics.median(f[0] for f in found), statistics.median(f[1] for f in found)
