"""Tables of an experiment about the head, computed from the cells' predictions.

Methods are of three kinds: (a) ``guidance`` alone, (b) an ``ensemble`` of two networks without diffusion
(``model.denoiser=classifier``), (c) a ``head``. The first (a) and the first (b) are what every method is compared with
in the tables. The verdict holds a head against the ensemble of the same two networks, trained alike, where there is
one: what is better than a weaker ensemble owes that to its encoders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write, load_tensors, read_json
from simulations.experiments.answer import STAR, table
from simulations.experiments.compare import Difference, corrected
from simulations.experiments.head import FACTS
from simulations.experiments.head_metrics import AURC, AUROC, Judged, alone, better, gap, judge
from simulations.experiments.runner import CELLS, read_index

GUIDANCE, ENSEMBLE, HEAD = "guidance", "ensemble", "head"
NAMES = {
    "auroc_macro": "macro AUROC",
    "balanced_accuracy": "balanced accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "error": "error rate",
    "aurc/entropy": "AURC, entropy",
    "aurc/disagreement": "AURC, disagreement",
    "aurc/spread": "AURC, spread",
}
SPLITS = {"val": "validation", "test": "test"}
_ASKED = {"val": "", "test": " --test"}
"""How images of a split are asked for."""
ALONE = ": second network alone"
_OF_A_HEAD = (
    *("denoiser", "sampling", "sampling_steps", "sampling_starts", "sampling_start", "timesteps"),
    *("draws", "alpha", "gamma", "balance", "crossfit"),
)
"""Settings of the model and of its last stage that say what stands behind the two networks."""


@dataclass(frozen=True, eq=False)
class Method:
    """What is known of one method.

    Attributes:
        kind: :data:`GUIDANCE`, :data:`ENSEMBLE` or :data:`HEAD`.
        networks: what its two networks are and how they are trained, whatever stands behind them.
        seeds: of which it has predictions.
        judged: by seed, in that order.
        facts: of the first seed.
        images: numbers of the images.
    """

    kind: str
    networks: str
    seeds: tuple[str, ...]
    judged: tuple[Judged, ...]
    facts: Mapping[str, Any]
    images: np.ndarray


def methods_of(out: Path, split: str) -> dict[str, Method]:
    """Every method that has predictions of a split; what mixes two scores is a second time there, unmixed.

    Raises:
        UsageError: the folder holds no experiment, no predictions, or cells of different images.
    """
    found: dict[str, dict[str, tuple[str, str, Judged, Mapping[str, Any], np.ndarray]]] = {}
    # By number, not as they were begun: in which order parts of an experiment were run changes nothing.
    for cell in sorted(read_index(out)["cells"], key=lambda cell: int(cell["place"]["seed"])):
        folder = out / CELLS / cell["name"]
        if not (folder / f"{split}.safetensors").exists():
            continue
        place, facts = cell["place"], read_json(folder / FACTS)
        val, tensors = (load_tensors(folder / f"{name}.safetensors") for name in ("val", split))
        views: dict[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]] = {"": (val, tensors)}
        if val["scores"].ndim == 3:
            views[ALONE] = (alone(val), alone(tensors))
        for suffix, (fitted_on, of) in views.items():
            name = " ".join(value for axis, value in place.items() if axis != "seed") + suffix
            judged = judge(fitted_on, of, facts["task"], facts["decision"])
            found.setdefault(name, {})[place["seed"]] = (*kind_of(folder, facts), judged, facts, tensors["keys"])
    if not found:
        said = f"{out}: no cell has predictions of {SPLITS[split]} images"
        raise UsageError(said, f"Run `fed-diffmic experiment head NAME --out DIR{_ASKED[split]}` first.")
    methods = {}
    for name, by_seed in found.items():
        kinds, networks, judged, facts, keys = zip(*by_seed.values(), strict=True)
        methods[name] = Method(kinds[0], networks[0], tuple(by_seed), judged, facts[0], keys[0])
    first = next(iter(methods.values())).images
    for name, method in methods.items():
        if not np.array_equal(method.images, first):
            raise UsageError(f"{out}: {name} was judged on other images", "Start again in another folder.")
    return methods


def kind_of(folder: Path, facts: Mapping[str, Any]) -> tuple[str, str]:
    """A cell's kind, and what its networks are (:class:`Method`), by its folder and facts."""
    if facts["stage"] == "guidance":
        return GUIDANCE, ""
    tree = yaml.safe_load((folder / "cell.yaml").read_text(encoding="utf-8"))
    kind = ENSEMBLE if tree["model"]["denoiser"] == "classifier" else HEAD
    model = {name: value for name, value in tree["model"].items() if name not in _OF_A_HEAD}
    stage = {name: value for name, value in tree["stages"]["diffusion"].items() if name not in _OF_A_HEAD}
    return kind, json.dumps([model, stage], sort_keys=True)


def write_head_report(out: Path) -> list[Path]:
    """``head-val.md`` and, where test images were predicted, ``head-test.md``; the paths.

    Raises:
        UsageError: see :func:`methods_of`.
    """
    written = []
    for split in SPLITS:
        if split == "val" or any((out / CELLS).glob(f"*/{split}.safetensors")):
            path = out / f"head-{split}.md"
            atomic_write(path, ("\n".join(report_lines(out, split)).rstrip() + "\n").encode())
            written.append(path)
    return written


def report_lines(out: Path, split: str) -> list[str]:
    """Verdict and tables of one split.

    Raises:
        UsageError: see :func:`methods_of`.
    """
    methods = methods_of(out, split)
    lines = _words(methods, split)
    metrics = [m for m in NAMES if any(m in one.value for method in methods.values() for one in method.judged)]
    rows = [
        [name, ", ".join(method.seeds), *(_mean(method, metric) for metric in metrics)]
        for name, method in methods.items()
    ]
    lines += table(["mean (standard deviation) over seeds", "seeds", *(NAMES[m] for m in metrics)], rows)
    for kind in (ENSEMBLE, GUIDANCE):
        reference = reference_of(methods, kind)
        if reference is not None:
            lines += _against(methods, reference, metrics)
    rows = [
        [name, m.kind, f"{m.facts['trained']:,}", str(m.facts["steps"]), _per_image(m.facts)]
        for name, m in methods.items()
        if not name.endswith(ALONE)
    ]
    lines += table(["method", "kind", "numbers trained in the last stage", "steps", "ms to predict an image"], rows)
    lines += [_rules()]
    return lines


def verdict_lines(out: Path, split: str) -> list[str]:
    """The verdict alone.

    Raises:
        UsageError: see :func:`methods_of`.
    """
    return _words(methods_of(out, split), split)


def _words(methods: Mapping[str, Method], split: str) -> list[str]:
    one = next(iter(methods.values()))
    first, *others = verdict(methods)
    how = f", trained by {one.facts['sites']} sites ({one.facts['federated']})" if one.facts.get("federated") else ""
    said = f"**{SPLITS[split].capitalize()}, {len(one.images)} images{how}.** {first}"
    return [said, "", *(f"- {line}" for line in others), ""]


def reference_of(methods: Mapping[str, Method], kind: str) -> str | None:
    """The first method of a kind, or none."""
    return next((name for name, m in methods.items() if m.kind == kind and not name.endswith(ALONE)), None)


def twin_of(methods: Mapping[str, Method], head: Method) -> str | None:
    """The ensemble of the same two networks, trained alike, as a head's; where there is none the first, or none."""
    for name, method in methods.items():
        if method.kind == ENSEMBLE and method.networks == head.networks and not name.endswith(ALONE):
            return name
    return reference_of(methods, ENSEMBLE)


def _mean(method: Method, metric: str) -> str:
    values = np.array([one.value.get(metric, math.nan) for one in method.judged])
    if np.isnan(values).any():
        return "-"
    return f"{values.mean():.3f}" + (f" ({values.std(ddof=1):.3f})" if len(values) > 1 else "")


def _per_image(facts: Mapping[str, Any]) -> str:
    return f"{1000 * facts['predict_s'] / max(1, facts['predicted']):.1f}"


def paired(ours: Method, theirs: Method, metric: str) -> Difference | None:
    """Over the seeds that both have; AURC by any uncertainty against the reference's by entropy."""
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    if not seeds:
        return None
    other = f"{AURC}/entropy" if metric.startswith(AURC) else metric
    first, second = (tuple(m.judged[m.seeds.index(seed)] for seed in seeds) for m in (ours, theirs))
    return gap(first, second, metric, other)


def _against(methods: Mapping[str, Method], reference: str, metrics: Sequence[str]) -> list[str]:
    found = {
        (name, metric): difference
        for name, method in methods.items()
        if name != reference
        for metric in metrics
        if (difference := paired(method, methods[reference], metric)) is not None
    }
    found = corrected(found)
    rows = [
        [name, *(_gap_text(metric, found.get((name, metric))) for metric in metrics)]
        for name in methods
        if name != reference
    ]
    return table([f"minus {reference}", *(NAMES[m] for m in metrics)], rows)


def _gap_text(metric: str, found: Difference | None) -> str:
    if found is None:
        return "-"
    star = STAR if found.outlasts else ""
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}) {better(metric, found)}{star}"


def earns(ours: Method, ensemble: Method) -> tuple[bool, str]:
    """Whether a head is worth its cost beside the ensemble, and why.

    Asked for: not shown to be worse in macro AUROC, and shown to be better in NLL or in AURC, each by the interval.
    """
    area = paired(ours, ensemble, AUROC)
    level = area is not None and math.isfinite(area.low) and better(AUROC, area) != "worse"
    names = ["nll", *(metric for metric in NAMES if metric.startswith(AURC))]
    found = {name: difference for name in names if (difference := paired(ours, ensemble, name)) is not None}
    good = [NAMES[name] for name, difference in found.items() if better(name, difference) == "better"]
    said = "macro AUROC not defined" if area is None else f"macro AUROC {_gap_text(AUROC, area)}"
    return level and bool(good), f"{said}; better in {', '.join(good) or 'neither NLL nor any AURC'}"


def verdict(methods: Mapping[str, Method]) -> list[str]:
    """Whether any head earns its cost, then one sentence for each."""
    heads = {name: m for name, m in methods.items() if m.kind == HEAD and not name.endswith(ALONE)}
    twins = {name: twin for name, method in heads.items() if (twin := twin_of(methods, method)) is not None}
    if not twins:
        return ["Without an ensemble and a head there is nothing to decide."]
    said = {name: earns(heads[name], methods[twin]) for name, twin in twins.items()}
    winners = [name for name, (won, _) in said.items() if won]
    seeds = {seed for method in heads.values() for seed in method.seeds}
    head = (
        f"Level with its ensemble in macro AUROC and shown to be better in NLL or an AURC: {', '.join(winners)}."
        if winners
        else "That a head earns its cost is not shown: none is level with its ensemble in macro AUROC and shown to be "
        "better in NLL or an AURC."
    )
    if len(seeds) == 1:
        head += " One seed: what another training would change is in none of the intervals."
    return [
        head,
        *(f"{name} minus {twins[name]} ({', '.join(heads[name].seeds)}): {why}" for name, (_, why) in said.items()),
    ]


def _rules() -> str:
    return (
        "*Better* and *worse* mean that the 95 % interval of the paired difference excludes zero, over patients or "
        "lesions and over seeds (`simulations/experiments/head_metrics.py`); a star: also after Holm's correction over "
        "the table. AURC is of the most probable class, less is better, a coin's is the error rate; a difference of "
        "AURC is from the reference's by entropy. *Second network alone*: head, or ensemble's classifier, without "
        "the guidance network's share."
    )
