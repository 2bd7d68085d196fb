"""Does the diffusion head earn its cost? Every method of an experiment trained as long and alike.

The runs of an experiment (:mod:`simulations.experiments.definition`), but on all images in one place and without
rounds of exchange, or by its sites in rounds (:mod:`simulations.experiments.head_together`), so that nothing differs
but the method:

- **one split** for all seeds and methods, so that every difference is paired; seeds differ in initial weights, batches
  and noise. Test images are predicted when that is asked for, after validation has decided;
- **the guidance network is trained once** for all methods of a seed that train it alike, and so is the second network
  for methods that only sample from it in other ways;
- a fixed number of steps and the last weights: nothing is chosen on the way.

A folder ``OUT`` holds ``trained.json`` (in which of the two ways), ``shared/STAGE-DIGEST.safetensors`` (weights),
``cells/NAME/val.safetensors`` and ``test.safetensors`` (scores and doubts by image, from which
:mod:`simulations.experiments.head_report` computes every number) and ``cells/NAME/facts.json``. What is there is not
computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.simulation import ModelConfig, SimulateConfig, StageConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.errors import ConfigError, DataError, UsageError
from fed_diffmic.files import atomic_write, load_tensors, read_json, save_tensors, write_json
from fed_diffmic.training.calibration import class_prior
from fed_diffmic.training.evaluation import predict_doubts
from fed_diffmic.training.guided import GuidanceTable, GuidedStage, fold_of, guidance_table, joined
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import build_module, full_state, initial_state, load_state
from fed_diffmic.training.update import LocalRound, SiteMemory
from simulations.drawn_from import FILE as DRAWN_FROM
from simulations.drawn_from import hold_to
from simulations.experiments.definition import Cell, Experiment
from simulations.experiments.head_together import check_together, trained_together
from simulations.experiments.runner import CELLS, check_machine, prepare
from simulations.run import choose_device
from simulations.sites import POOLED, class_counts, forget_sites, shared_sites

SHARED, FACTS, TRAINED = "shared", "facts.json", "trained.json"
SPLIT_SEED = 0
"""Of the one split that all seeds share."""
_OF_GUIDANCE = (
    "image_side",
    "regions",
    "crop",
    "crop_channels",
    "region_map",
    "features",
    "top_percent",
    "attention",
    "guidance_backbone",
    "local_backbone",
    "feature_stride",
    "encoder_norm",
    "frozen_blocks",
    "pretrained",
    "weights",
)
_OF_SAMPLING = ("sampling", "sampling_steps", "sampling_starts", "sampling_start")


@dataclass(frozen=True)
class Work:
    """One cell's data and place.

    Attributes:
        cell: what is trained.
        spec: of the cell.
        data: the one split, of all images.
        train: the training images of each site; of :data:`simulations.sites.POOLED` alone, where they are in one place.
        shared: folder of weights.
        tables: what was last said of the training images, by its key; other cells of the seed use it again.
    """

    cell: Cell
    spec: RunSpec
    data: SiteData
    train: Mapping[str, Examples]
    shared: Path
    tables: dict[str, GuidanceTable]


def run_head(
    experiment: Experiment,
    out: Path,
    *,
    test: bool = False,
    federated: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Train and predict every cell that has no predictions yet.

    Args:
        experiment: its cells.
        out: its folder, new or begun.
        test: predict the test images too.
        federated: train by the cells' strategy over their sites; else on all images in one place.
        say: one line for each cell.

    Raises:
        ConfigError: a cell trains the plain classifier, or cross-fits what it augments; or this machine lacks what
            every cell needs.
        UsageError: the folder was begun in the other way; and see :func:`simulations.experiments.runner.prepare`.
        MachineError: see there.
        DataError, PartitionError, ModelFileError: see :mod:`fed_diffmic.errors`.
    """
    for cell in experiment.cells:
        _check(cell.config)
        if federated:
            check_together(cell.config)
    check_machine([replace(cell, config=_without_crossfit(cell.config)) for cell in experiment.cells], out)
    _hold_to_way(out, federated)
    prepare(experiment, out)
    write_json(out / TRAINED, {"federated": federated})
    (out / SHARED).mkdir(exist_ok=True)
    splits = ("val", "test") if test else ("val",)
    tables: dict[str, GuidanceTable] = {}
    for position, cell in enumerate(experiment.cells, start=1):
        folder = out / CELLS / cell.name
        missing = [split for split in splits if not (folder / f"{split}.safetensors").exists()]
        if missing:
            say(f"[{position}/{len(experiment.cells)}] {cell.name}")
            _predict(_work(cell, out, tables, federated), folder, missing)


def _hold_to_way(out: Path, federated: bool) -> None:
    """Hold a folder to how its networks are trained; one without a word of it is older, and of images in one place.

    Raises:
        UsageError: it is the other way.
    """
    begun = read_json(out / TRAINED)["federated"] if (out / TRAINED).exists() else False
    if not (out / SHARED).exists() or begun == federated:
        return
    if begun:
        raise UsageError(
            f"{out}: its networks are trained as a federation", "Give --federated again, or choose another --out."
        )
    raise UsageError(
        f"{out}: its networks are trained on all images in one place",
        "Leave --federated away, or choose another --out.",
    )


def _without_crossfit(config: SimulateConfig) -> SimulateConfig:
    """Without what a run refuses and is trained here."""
    return replace(config, stages=replace(config.stages, diffusion=replace(config.stages.diffusion, crossfit=0)))


def _check(config: SimulateConfig) -> None:
    stages = config.stages
    if trained_stages(stages) == ("plain",):
        raise ConfigError(
            "stages.guidance.rounds", stages.guidance.rounds, "at least 1 in an experiment about the head"
        )
    if stages.diffusion.crossfit == 1:
        raise ConfigError("stages.diffusion.crossfit", 1, "0, or 2 and more: one fold leaves nothing to train on")
    if stages.diffusion.crossfit and stages.diffusion.augment:
        raise ConfigError(
            "stages.diffusion.augment",
            "true",
            "false with stages.diffusion.crossfit: the guidance is of images as they are",
        )


def _work(cell: Cell, out: Path, tables: dict[str, GuidanceTable], federated: bool) -> Work:
    config = cell.config
    folder = out / f"data-{config.model.image_side}"
    sites = shared_sites(replace(config, seed=SPLIT_SEED), folder)
    _hold_to_first(folder)
    device = choose_device(config.run.device)
    arm = "federated" if federated else POOLED
    spec = make_spec(config, classes=sites.classes, task=sites.task, run_id=cell.name, arm=arm, device=device)
    data = sites.get(POOLED)
    train = {name: site.train for name, site in sites.sites.items()} if federated else {POOLED: data.train}
    return Work(cell, spec, data, train, out / SHARED, tables)


def _hold_to_first(folder: Path) -> None:
    """Hold the data to those with which the experiment was begun: weights that are kept would be of other images.

    Raises:
        DataError: they changed.
        ModelFileError: what was written down is damaged.
    """
    first = folder / "begun"
    if (first / DRAWN_FROM).exists():
        try:
            hold_to(folder, first, "this experiment")
        except DataError:
            forget_sites()  # somebody puts them back, and this process may live on
            raise
    else:
        first.mkdir(exist_ok=True)
        atomic_write(first / DRAWN_FROM, (folder / DRAWN_FROM).read_bytes(), mode=0o600)


def _predict(work: Work, folder: Path, splits: list[str]) -> None:
    """Predict the splits with the cell's last stage, training what is not there."""
    started = time.monotonic()
    guidance = trained_guidance(work)
    stage = trained_stages(work.spec.stages)[-1]
    state = guidance if stage == "guidance" else trained_head(work, guidance)
    module = build_module(work.spec, stage)
    load_state(module.network, state, f"stage {stage}")
    train = work.data.train
    prior = class_prior(np.asarray(class_counts(train.labels, work.spec.num_classes)), len(train), work.spec.task)
    for split in splits:
        examples: Examples = getattr(work.data, split)
        begun = time.monotonic()
        scores, doubts = predict_doubts(module, examples, work.spec.device)
        seconds = time.monotonic() - begun
        tensors = {"scores": scores, "labels": examples.labels, "keys": examples.keys.astype(np.int64), "prior": prior}
        tensors["groups"] = np.unique(examples.groups, return_inverse=True)[1].astype(np.int64)
        tensors |= {f"doubt/{name}": values for name, values in doubts.items()}
        save_tensors(folder / f"{split}.safetensors", tensors)
        cfg = work.spec.stage(stage)
        write_json(
            folder / FACTS,
            {
                "task": work.spec.task,
                "classes": list(work.spec.classes),
                "stage": stage,
                "decision": work.spec.stages.decision,
                "trained": trained_parameters(module),
                "steps": (cfg.rounds or 0) * sum(cfg.local_steps(len(part)) for part in work.train.values()),
                "federated": work.spec.strategy.name if POOLED not in work.train else "",
                "sites": len(work.train),
                "predicted": len(examples),
                "predict_s": round(seconds, 1),
                "seconds": round(time.monotonic() - started, 1),
            },
        )


def trained_parameters(module: StageModule) -> int:
    """How many numbers a stage trains."""
    return sum(p.numel() for p in module.network.parameters() if p.requires_grad)


def _kept(work: Work, stage: str, key: str, train: Callable[[], Tensors]) -> Tensors:
    """Weights from their file, or trained and kept."""
    path = work.shared / f"{stage}-{sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        save_tensors(path, train())
    return load_tensors(path)


def guidance_spec(spec: RunSpec) -> RunSpec:
    """The specification with everything at its default that the guidance network does not depend on."""
    model = replace(ModelConfig(), **{name: getattr(spec.model, name) for name in _OF_GUIDANCE})
    stages = replace(spec.stages, diffusion=StageConfig(), plain=StageConfig(), decision="probability")
    return replace(spec, run_id="", model=model, stages=stages)


def head_spec(spec: RunSpec) -> RunSpec:
    """The specification with everything at its default that only prediction depends on."""
    model = replace(spec.model, **{name: getattr(ModelConfig(), name) for name in _OF_SAMPLING})
    stages = replace(spec.stages, diffusion=replace(spec.stages.diffusion, blend=False), decision="probability")
    return replace(spec, run_id="", model=model, stages=stages)


def trained_guidance(work: Work) -> Tensors:
    """The guidance network of the cell's seed, trained on all training images."""
    spec = guidance_spec(work.spec)
    return _kept(work, "guidance", _key(work, spec), partial(_trained, spec, "guidance", work.train))


def trained_head(work: Work, guidance: Tensors) -> Tensors:
    """Prior and head (or the classifier in its place) behind a guidance network."""
    spec = head_spec(work.spec)

    def train() -> Tensors:
        table = guidance_of(work)
        return _trained(spec, "diffusion", work.train, guidance, table)

    return _kept(work, "diffusion", _key(work, spec), train)


def guidance_of(work: Work) -> GuidanceTable | None:
    """What is said of the training images before the head is trained: out of fold, or once instead of at every step.

    None where images are augmented: they are then other ones at every step.
    """
    cfg, spec = work.spec.stages.diffusion, guidance_spec(work.spec)
    if cfg.augment:
        return None
    key = f"{cfg.crossfit} {_key(work, spec)}"
    if key not in work.tables:
        work.tables.clear()
        work.tables[key] = _said(work, spec)
    return work.tables[key]


def _said(work: Work, spec: RunSpec) -> GuidanceTable:
    cfg, train = work.spec.stages.diffusion, work.data.train
    if not cfg.crossfit:
        return _table(spec, trained_guidance(work), train)
    folds = fold_of(train.groups, cfg.crossfit, spec.seed)
    tables = []
    for fold in range(cfg.crossfit):
        own = train.subset(folds == fold)
        key = f"{_key(work, spec)} without fold {fold} of {cfg.crossfit}"
        state = _kept(work, "guidance", key, partial(_trained, spec, "guidance", _others(work, fold)))
        tables.append(_table(spec, state, own))
    return joined(tables)


def _table(spec: RunSpec, state: Tensors, examples: Examples) -> GuidanceTable:
    module = build_module(spec, "guidance")
    load_state(module.network, state, "stage guidance")
    return guidance_table(module, examples, spec.device)


def _key(work: Work, spec: RunSpec) -> str:
    keys = sha256(np.ascontiguousarray(work.data.train.keys).tobytes()).hexdigest()
    return f"{replace(spec, device='').to_json()} {keys}"


def _others(work: Work, fold: int) -> dict[str, Examples]:
    """Each site's training images that are not of a fold; a site that has none is left out."""
    cfg = work.spec.stages.diffusion
    found = {
        name: train.subset(fold_of(train.groups, cfg.crossfit, work.spec.seed) != fold)
        for name, train in work.train.items()
    }
    return {name: train for name, train in found.items() if len(train)}


def _trained(
    spec: RunSpec,
    stage: str,
    train: Mapping[str, Examples],
    guidance: Tensors | None = None,
    table: GuidanceTable | None = None,
) -> Tensors:
    """All rounds of a stage, with the optimizer's moments kept; the last weights."""
    if POOLED not in train:
        return trained_together(spec, stage, train, guidance, table)
    module = build_module(spec, stage)
    load_state(module.network, initial_state(spec, stage, guidance), f"stage {stage}")
    if isinstance(module, GuidedStage):
        module.table = table
    kept = replace(spec.strategy, keep_optimizer_state=True)
    module.spec = replace(spec, strategy=kept)
    memory = SiteMemory()
    for number in range(1, (spec.stage(stage).rounds or 0) + 1):
        at = LocalRound(POOLED, number, spec.device)
        result = local_update(module, train[POOLED], build_algorithm(kept), at, memory)
        memory = SiteMemory(optimizer=result.optimizer_state or {}, algorithm=result.algorithm_state)
    return full_state(module)
