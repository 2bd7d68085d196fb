"""Seconds, bytes and processor time of a round: plain, under masks, and with noise that the sites share under masks.

Three runs of one consortium, one after the other, over the same images: FedAvg with one local step, the same under
masks, and ``strategy=fedsgd`` with ``privacy.mechanism=distributed``. Trained are the heads of the guidance network
alone; its encoders are frozen. As many images are drawn for a step as the others take. A plain round is judged too, in
the message that asks for training, a masked one by a masked sum of its own, both on a handful of images; sites with
shared noise say nothing of the weights. The first round, which also brings the base, and the last do not count.

More than three sites are started one after the other: so many programs at once take minutes to load, and as many
together share the processors in each round. So seconds of many sites are those of this machine, and say less than
ratios do. Bytes are told twice: tensors, as the coordinator counts them, and what really crossed to and from a site,
with TLS, seals, keys, shares and questions whether there is work.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.consortium_memory import AT_ONCE, DONE_S, LEAST_FREE_MB, free_mb, names
from benchmarks.consortium_rounds import spent
from benchmarks.pages import read
from fed_diffmic.exchange.masking.shamir import most_dishonest, share_threshold
from fed_diffmic.files import atomic_write
from tests.consortium.harness import Consortium
from tests.consortium.link import Link
from tests.consortium.masks import accept_all
from tests.consortium.programs import GoneError, wait
from tests.consortium.settings import overrides, training, write_data

PLAIN, MASKED, SHARED = "plain", "masked", "shared noise"
WAYS = (PLAIN, MASKED, SHARED)
ROLES = ("coordinator", "SuperLink", "SuperNode", "worker")
BATCH, RATE = 4, 1 / 3  # of the twelve training images that each site is drawn: four expected
LOOK_S = 0.05  # who looks more often takes processor time from those who are measured
HEAD = (
    "model", "sites", "round", "seconds (least)", "ratio", "tensors of a site, MB", "sent by a site, MB",
    "sent to a site, MB", *(f"{role}, CPU s" for role in ROLES), "together", "ratio", "load",
)  # fmt: skip
BEGIN, END = "<!-- shared rounds: begin (benchmarks/consortium_shared.py) -->", "<!-- shared rounds: end -->"


def honest(sites: int) -> int:
    """Others that a site takes to be honest: of the smallest set all but as many as masks of so many sites bear."""
    return max(1, share_threshold(sites) - 1 - most_dishonest(sites))


def settings(way: str, model: str, rounds: int) -> dict[str, Any]:
    """Of the coordinator's run, as the harness takes them."""
    common = training(rounds=rounds, steps=1, batch_size=BATCH, encoders="frozen")
    if model != "tiny":
        common |= {"model": model, "stages": model, "model_settings": {"pretrained": "false"}}
    else:
        common["model_settings"] = {**common["model_settings"], "norm": "group", "encoder_norm": "group"}
    common["stage_settings"]["diffusion"]["rounds"] = 0
    masks = {} if way == PLAIN else {"secure_aggregation": "masked"}
    if way == SHARED:
        noise = {"sample_rate": RATE, "noise_share": 1.0, "step_size": 0.001}
        return {**common, "strategy": "fedsgd", "strategy_settings": {**noise, **masks}}
    return {**common, "strategy_settings": masks}


def site_settings(way: str, sites: int) -> list[str]:
    """Of each site: its privacy. The budgets are no hospital's; they only do not end the run."""
    if way != SHARED:
        return []
    return [
        "privacy=dp_sgd", "privacy.stages=[guidance]", "privacy.unit=image", "privacy.mechanism=distributed",
        f"privacy.honest_sites={honest(sites)}", "privacy.budget=1000", "privacy.budget_alone=2000",
        "privacy.delta=1e-3", "privacy.count_noise=5", "privacy.nominal_units=12",
    ]  # fmt: skip


def bounds(sites: int) -> dict[str, float]:
    """``run`` of the coordinator: it waits, and asks nobody for test images."""
    return {"deadline_s": DONE_S * sites, "join_s": DONE_S * sites, "test_s": 0.0}


def rules(sites: int) -> dict[str, Any]:
    """Of each site's policy, the same in all three runs."""
    return {
        "strategies": ["fedavg", "fedsgd"], "min_sites": max(2, honest(sites)),
        "study": {"approval": "rule", "models": [], "backbones": ["*"]},
    }  # fmt: skip


@dataclass
class Told:
    """What one run's rounds came to, between the end of the first and the end of the last but one.

    Attributes:
        seconds: of each round.
        tensors: bytes of a site and round, both ways, as the coordinator counts them.
        up, down: bytes that crossed from a site and to it, a round.
        cpu_s: of each kind of process a round; of sites the mean.
        load: the machine's average of the last minute, at the end.
    """

    seconds: list[float]
    tensors: float
    up: float
    down: float
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    load: float = 0.0

    @property
    def together(self) -> float:
        """CPU seconds of one site and the coordinator, a round."""
        return sum(self.cpu_s.values())


def told(
    done: Sequence[Mapping[str, Any]],
    cpu_s: tuple[Mapping[str, float], Mapping[str, float]],
    crossed: tuple[tuple[int, int], tuple[int, int]],
    sites: int,
) -> Told:
    """What was measured.

    Args:
        done: the ``round_done`` events of the rounds that count.
        cpu_s: of each kind of process, before these rounds and behind them, all sites together.
        crossed: bytes up and down, before and behind, all sites together.
        sites: how many.
    """
    rounds, own = len(done), {"SuperNode": sites, "worker": sites, "supervisor": sites}
    spent_s = {role: (cpu_s[1][role] - cpu_s[0].get(role, 0.0)) / rounds / own.get(role, 1) for role in cpu_s[1]}
    up, down = ((after - before) / rounds / sites for before, after in zip(*crossed, strict=True))
    tensors = sum(float(event["bytes_sent"]) for event in done) / rounds / sites
    return Told([float(event["seconds"]) for event in done], tensors, up, down, spent_s, os.getloadavg()[0])


def measure_shared(folder: Path, model: str, numbers: Sequence[int], rounds: int, page: Path | None) -> str:
    """Run each number of sites in each way, print each row as it comes, and give the table.

    Args:
        folder: of all that is written.
        model: ``tiny`` or ``compact``.
        numbers: of sites.
        rounds: of each run.
        page: gets the rows between its marks; none: no page does.

    Raises:
        UsageError: the page is not there.
        ValueError: it has no marks; either way nothing was run.
    """
    lines: list[str] = []
    if page is not None:
        filled(read(page), lines)
    for sites in numbers:
        lines += rows(model, sites, run_ways(folder / f"{model}-{sites}", model, sites, rounds))
        print("\n".join(lines[-len(WAYS) :]), flush=True)
    if page is not None:
        atomic_write(page, filled(read(page), lines).encode())
    return table(lines)


def run_ways(folder: Path, model: str, sites: int, rounds: int) -> dict[str, Told]:
    """Each way once; the sites' programs of the first two are the same processes."""
    those = names(sites)
    found: dict[str, Told] = {}
    write_data(folder / "data", sites=those)
    bound = bounds(sites)["deadline_s"]
    made = Consortium(
        folder / "consortium", folder / "data", settings(PLAIN, model, rounds), heartbeat_s=30.0, way={"poll_s": 0.5},
        run=bounds(sites), sites=those,
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(made.end)
        links = {site: stack.enter_context(closing(Link(made.port))) for site in those}
        for site in those:
            made.reroute(site, links[site].port)
            made.set_policy(site, **rules(sites))
        accept_all(made)
        for way in WAYS:
            made.new_run(way.replace(" ", "-"))
            made.server_settings = [s for s in overrides(settings(way, model, rounds)) if not s.startswith("seed=")]
            server = made.start_server()
            if way != MASKED:
                start_sites(made, bound, site_settings(way, sites))
                made.programs.append(made.programs.pop(made.programs.index(server)))  # whose end is looked at
            found[way] = one_run(made, list(links.values()), rounds, bound)
            code = server.wait(bound)
            if code != 0:
                raise GoneError(f"{way}: the coordinator ended with {code}\n{server.said()[-2000:]}")
            if way != PLAIN:
                made.stop_sites(120.0)
    return found


def start_sites(made: Consortium, bound_s: float, given: Sequence[str]) -> None:
    """Every site; more than a few one after the other.

    Raises:
        GoneError: the machine has no room for one more.
    """
    for site in made.sites:
        if free_mb() < LEAST_FREE_MB:
            raise GoneError(f"{free_mb():.0f} MB of the machine's memory are free: too few for {site}")
        (made.site_folder(site) / "run" / "worker.json").unlink(missing_ok=True)  # what an earlier worker said
        made.start_site(site, *given)
        if len(made.sites) > AT_ONCE:
            made.wait_state(site, ("ready", "working"), bound_s)


def one_run(made: Consortium, links: Sequence[Link], rounds: int, bound_s: float) -> Told:
    """Watch a run from the end of its first round to that of its last but one."""

    def crossed() -> tuple[int, int]:
        return sum(link.up for link in links), sum(link.down for link in links)

    def until(number: int) -> tuple[dict[str, float], tuple[int, int]]:
        def over() -> bool:
            gone = made.programs[-1].process.poll() is not None
            if any(e["kind"] == "round_done" and e["round"] == number for e in made.events.read()):
                return True
            if gone:
                raise GoneError(f"the coordinator ended before round {number}:\n{made.programs[-1].said()[-3000:]}")
            return False

        wait(f"round {number}", over, bound_s, LOOK_S)
        return spent(made), crossed()

    (cpu_before, bytes_before), (cpu_after, bytes_after) = until(1), until(rounds - 1)
    done = [e for e in made.events.read() if e["kind"] == "round_done" and 1 < e["round"] < rounds]
    return told(done, (cpu_before, cpu_after), (bytes_before, bytes_after), len(made.sites))


def rows(model: str, sites: int, found: Mapping[str, Told]) -> list[str]:
    """A line of the table for each way; ratios are to the plain run."""
    lines, base = [], found[PLAIN]
    for way, one in found.items():
        median = statistics.median(one.seconds)
        cells = [
            model, str(sites), way, f"{median:.2f} ({min(one.seconds):.2f})",
            f"{median / statistics.median(base.seconds):.2f}", f"{one.tensors / 1e6:.3f}", f"{one.up / 1e6:.3f}",
            f"{one.down / 1e6:.3f}", *(f"{one.cpu_s.get(role, 0.0):.2f}" for role in ROLES), f"{one.together:.2f}",
            f"{one.together / base.together:.2f}", f"{one.load:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def table(lines: Sequence[str]) -> str:
    """The rows under their head."""
    return "\n".join([f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *lines])


def filled(text: str, lines: Sequence[str]) -> str:
    """A page with these rows between its marks; rows of other models and numbers of sites stay.

    Raises:
        ValueError: the page has no marks.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the page has no place for the table: {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    kept: dict[tuple[str, ...], str] = {}
    for line in [*(x for x in old.splitlines() if x.startswith("| ") and not x.startswith(f"| {HEAD[0]} ")), *lines]:
        kept[tuple(cell.strip() for cell in line.split("|")[1:4])] = line
    order = sorted(kept, key=lambda key: (key[0] != "tiny", int(key[1]), WAYS.index(key[2])))
    return f"{before}{BEGIN}\n{table([kept[key] for key in order])}\n{END}{after}"
