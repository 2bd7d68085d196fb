"""``summary.json``: every figure of a run. The only place where test images are read.

Test sets from elsewhere are opened here, and last of all: when every arm has been trained and every choice made.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.files import save_tensors
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.privacy.statement import last_claims, last_client_level, statement
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training.operating import class_points
from simulations.advice import advice
from simulations.arms import Arm, TrainedArm
from simulations.examples import example_tensors, wanted
from simulations.external import judge_external, open_external
from simulations.metrics import (
    Judge,
    MethodResult,
    cross_site,
    differences,
    everywhere,
    join,
    method_result,
    prediction_tensors,
    subgroups,
)
from simulations.sites import VirtualSites, heterogeneity

PACKAGES = ("fed-diffmic", "flwr", "torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn")
EXTERNAL = "external.safetensors"


def summarise(
    config: SimulateConfig,
    sites: VirtualSites,
    arms: Sequence[Arm],
    trained: Mapping[str, TrainedArm],
    methods: Mapping[str, Mapping[str, Judge]],
    device: str,
) -> dict[str, Any]:
    """Every figure of the run.

    Args:
        config: of the run.
        sites: its data.
        arms: what was trained, the federation first.
        trained: what came of each arm.
        methods: for each method the model that each site would use.
        device: where it was computed.

    Raises:
        DataError: a test set from elsewhere cannot be used (:func:`simulations.external.open_external`).
    """
    run_dir = Path(str(config.run.dir))
    draws = config.run.bootstrap
    main = trained["federated"].final
    last = arms[0].stages[-1]
    results = {name: method_result(models, sites.sites, draws) for name, models in methods.items()}
    save_tensors(run_dir / "predictions.safetensors", prediction_tensors(results, sites.sites))
    _keep_examples(config, methods, results, sites)
    rows = everywhere(methods, results, sites.sites)
    own = results["federated"]
    others = {name: result for name, result in results.items() if name != "federated"}
    external = open_external(config, sites, run_dir)
    elsewhere, tensors, columns = judge_external(external, methods, draws)
    if tensors:
        save_tensors(run_dir / EXTERNAL, tensors)
    matrix = {model: {**row, **columns.get(model, {})} for model, row in cross_site(rows, draws).items()}
    return {
        "status": "done",
        "run": Path(str(config.run.dir)).name,
        "seed": config.seed,
        "dataset": config.dataset.name,
        "task": sites.task,
        "classes": list(sites.classes),
        "class_names": main.spec.plain_names,
        "modality": config.dataset.modality,
        "stages": {stage: stage_facts(main, stage) for stage in arms[0].stages},
        "final_stage": last,
        "global": own.metrics["global"],
        "mean": own.metrics["mean"],
        "sites": _sites(sites, own),
        "baselines": nested({name: result.metrics for name, result in others.items()}),
        "differences": differences(own, others, draws, config.seed),
        "matrix": matrix,
        "external": elsewhere,
        "advice": advice(results, rows, bootstrap=draws, seed=config.seed),
        "strategy": config.strategy.name,
        "partition": _partition(config, sites),
        "lr_scales": {arm.name: trained[arm.name].lr_scale for arm in arms},
        "optimizers": {arm.name: trained[arm.name].optimizer for arm in arms if trained[arm.name].optimizer},
        "calibration": main.calibration[last].to_json(),
        "sureness": main.sureness[last].to_json() if last in main.sureness else None,
        "operating_points": class_points(
            join(list(own.test.values())), sites.classes, bootstrap=draws, seed=config.seed
        ),
        "subgroups": subgroups(own, sites.sites, main, last, draws),
        "bytes_sent": main.bytes_sent,
        "notes": [*sites.notes, *(note for table in external.values() for note in table.notes)],
        "privacy": statement(last_claims(main.history), sites.sites, last_client_level(main.history)),
        "versions": {**{name: version(name) for name in PACKAGES}, "python": platform.python_version()},
        "device": device,
        "digests": main.digests,
    }


def _sites(sites: VirtualSites, own: MethodResult) -> dict[str, Any]:
    """How many images each site has, and the federation's metrics there."""
    return {
        name: {
            "n_train": len(data.train),
            "n_val": len(data.val),
            "n_test": len(data.test),
            "class_counts": dict(zip(sites.classes, sites.class_counts[name], strict=True)),
            **own.metrics["sites"][name],
        }
        for name, data in sites.sites.items()
    }


def _partition(config: SimulateConfig, sites: VirtualSites) -> dict[str, Any]:
    """How the images were divided."""
    return {
        "name": config.partition.name,
        "digest": sites.partition,
        "heterogeneity": heterogeneity(sites.class_counts),
        "folds": config.partition.folds,
        "fold": config.partition.fold,
    }


def _keep_examples(
    config: SimulateConfig,
    methods: Mapping[str, Mapping[str, Judge]],
    results: Mapping[str, MethodResult],
    sites: VirtualSites,
) -> None:
    """Write the images that the report shows, if it shows any."""
    from fed_diffmic.reporting.examples import FILE  # matplotlib: not before there is something to draw

    shown = wanted(config)
    guidance = methods.get("guidance/federated", {})
    models = {place: model for place, model in guidance.items() if isinstance(model, Predictor)}
    if shown and models:
        examples = example_tensors(models, results["federated"], sites.sites, shown)
        if examples:  # no test image may have any of several labels
            save_tensors(Path(str(config.run.dir)) / FILE, examples)


def nested(methods: dict[str, Any]) -> dict[str, Any]:
    """``plain/pooled`` becomes ``["plain"]["pooled"]``."""
    result: dict[str, Any] = {}
    for name, value in methods.items():
        *outer, last = name.split("/")
        place = result
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def stage_facts(final: FinalModel, stage: str) -> dict[str, Any]:
    """Rounds, the round chosen, seconds, bytes and the history of a stage."""
    history = [row for row in final.history if row["stage"] == stage]
    return {
        "rounds": len(history),
        "best_round": history[-1]["best_round"] if history else 0,
        "select": final.spec.stage(stage).select,
        "seconds": round(sum(row["seconds"] for row in history), 2),
        "bytes_sent": sum(row["bytes_sent"] for row in history),
        "history": history,
    }
