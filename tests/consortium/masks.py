"""Masked sums over real processes: peers accepted, what each side wrote of the sets, a site struck at a step."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import Any

from fed_diffmic.config.compose import compose_server
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import PROBLEM, compare
from fed_diffmic.provision.coordinator import make_kit
from fed_diffmic.provision.keys import fingerprint
from fed_diffmic.provision.peers import accept_peer, proposal
from tests.consortium.harness import Consortium
from tests.consortium.programs import START_S, GoneError, Program, wait
from tests.consortium.settings import SITES


def accept_all(made: Consortium) -> None:
    """The people of every site accept every other one, each by the digits of its key."""
    config = compose_server(made.server_yaml, [])
    for site in made.sites:
        kit = make_kit(config, site, f"localhost:{made.port}")
        for other in set(made.sites) - {site}:
            digits = fingerprint(proposal(kit, other).key)
            accept_peer(made.site_folder(site), kit, other, digits, before=lambda peer: None)


def sets_of(made: Consortium, site: str) -> dict[tuple[str, int], set[str]]:
    """The sets of updates that a site agreed to in this run, by stage and round."""
    found: dict[tuple[str, int], set[str]] = {}
    for line in read_lines(made.site_folder(site) / "audit.jsonl"):
        if line.kind not in ("masked_set", "masked_shares") or line.facts["purpose"] != "train":
            continue
        if line.facts["run"] == made.run_dir.name:
            found.setdefault((line.facts["stage"], line.facts["round"]), set()).add(line.facts["set"])
    return found


def check_logs(made: Consortium, rounds: dict[str, int]) -> None:
    """Every site agreed to one set a round, all to the same over all sites, and the coordinator's log names it."""
    coordinator = read_lines(made.run_dir / "audit.jsonl")
    agreed = [sets_of(made, site) for site in SITES]
    assert agreed[0] == agreed[1] == agreed[2]
    assert set(agreed[0]) == {(stage, n) for stage, count in rounds.items() for n in range(1, count + 1)}
    for texts in agreed[0].values():
        (text,) = texts
        assert json.loads(text)["summed"] == sorted(SITES) and json.loads(text)["dropped"] == []
    for site in SITES:
        lines = read_lines(made.site_folder(site) / "audit.jsonl")
        problems = [f for f in compare(lines, coordinator, site=site, run=made.run_dir.name) if f.level == PROBLEM]
        assert problems == []


def kill(program: Program) -> None:
    """SIGKILL to a program and all below it, by their numbers."""
    program.look()
    for pid in program.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    program.process.wait(10)


def wait_step(made: Consortium, step: str, index: int, site: str) -> None:
    """Until the coordinator's log says that a site is asked for a step of a round."""
    task = {"task": "train"} if step == "train" else {"task": "mask", "step": step}

    def asked() -> bool:
        return any(has(line, {**task, "round": index, "site": site}) for line in made.audit.read())

    wait(f"{step} of round {index} at {site}", asked, START_S)


def wait_set(made: Consortium, index: int) -> None:
    """Until the coordinator's log names a round's set, which no site has agreed to yet."""

    def frozen() -> bool:
        if made.programs[-1].process.poll() is not None:
            raise GoneError(made.programs[-1].said()[-2000:])
        sets = [line["facts"] for line in made.audit.read() if line["kind"] == "masked_set"]
        return any(facts["round"] == index and facts["purpose"] == "train" for facts in sets)

    wait(f"the set of round {index}", frozen, START_S)


def has(line: dict[str, Any], facts: dict[str, Any]) -> bool:
    return line["kind"] == "request" and all(line["facts"].get(name) == value for name, value in facts.items())
