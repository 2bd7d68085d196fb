"""Virtual sites: one data set, partitioned by group, each part split by its own site."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.config.checks import parse_absence, parse_slowness
from fed_diffmic.config.compose import config_from_run_config
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.acquisition import AcquiredImages, Device, acquired_keys, device_of
from fed_diffmic.data.manifest import SPLITS
from fed_diffmic.data.open import open_dataset
from fed_diffmic.data.phantoms import write_phantoms
from fed_diffmic.data.site import SiteData, merge_sites
from fed_diffmic.data.splits import Fold, split_site
from fed_diffmic.errors import ConfigError, PartitionError
from fed_diffmic.exchange.failures import ABSENT, SiteError
from fed_diffmic.seeding import numpy_generator
from simulations.drawn_from import keep_or_check
from simulations.partitioners import partition, save_partition

POOLED = "pooled"


@dataclass(frozen=True)
class VirtualSites:
    """The sites of a simulated consortium.

    Attributes:
        sites: by name, sorted.
        classes, task: what is predicted.
        notes: what was found in the data and handled (sentences without names).
        class_counts: ``(C,)`` training images of each class for each site.
        partition: digest of who holds which image in which split.
    """

    sites: dict[str, SiteData]
    classes: tuple[str, ...]
    task: str
    notes: tuple[str, ...]
    class_counts: dict[str, list[int]]
    partition: str = ""

    def get(self, name: str) -> SiteData:
        """A site by name; ``pooled`` is the union of all, each image keeping its split."""
        return merge_sites(POOLED, list(self.sites.values())) if name == POOLED else self.sites[name]


def with_phantoms(config: SimulateConfig, run_dir: Path) -> SimulateConfig:
    """Draw the phantoms that the configuration asks for and say where they are."""
    if config.dataset.name != "phantoms":
        return config
    root = Path(config.dataset.root) if config.dataset.root else run_dir / "phantoms"
    modality = "dermoscopy" if config.dataset.modality == "none" else config.dataset.modality
    # Drawn with a seed of their own: runs with other seeds or sites can share one folder.
    write_phantoms(root, modality, config.dataset.phantom_images, seed=0)
    return replace(config, dataset=replace(config.dataset, root=str(root), modality=modality))


def build_sites(config: SimulateConfig, run_dir: Path) -> VirtualSites:
    """Read the data set, divide it over the sites and split each site.

    The partition and the splits are saved under ``run_dir``, with the findings (0600).

    Raises:
        DataError: what is wrong with the tables or images, all together; or they are others than those with which the
            run in ``run_dir`` was started.
        PartitionError: a site would have too little.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    config = with_phantoms(config, run_dir)
    opened = open_dataset(config.dataset, config.model.image_side, findings_path=run_dir / "findings.csv")
    keep_or_check(run_dir, opened.manifest)
    cfg = config.partition
    parts = {
        name: split_site(part, name, config.seed, cfg.val_fraction, cfg.test_fraction, Fold(cfg.folds, cfg.fold))
        for name, part in partition(opened.manifest, cfg, config.seed).items()
    }
    if POOLED in parts:
        raise PartitionError(
            f"a site is named {POOLED!r}, which is the name of the baseline that holds all data",
            "Rename that institution in the table.",
        )
    digest = save_partition(run_dir / "partition.csv", parts)
    sites = {name: SiteData.from_manifest(name, part, opened.cache) for name, part in sorted(parts.items())}
    if cfg.acquisition:
        sites = acquired(sites, {name: device_of(name, config.seed, cfg.acquisition) for name in sites})
    counts = {name: class_counts(data.train.labels, len(opened.manifest.classes)) for name, data in sites.items()}
    notes = [str(finding).removeprefix("warning ") for finding in opened.findings]
    notes += one_class_notes(counts, opened.manifest.classes, opened.manifest.task)
    return VirtualSites(
        sites=sites,
        classes=opened.manifest.classes,
        task=opened.manifest.task,
        notes=tuple(notes),
        class_counts=counts,
        partition=digest,
    )


def acquired(sites: Mapping[str, SiteData], devices: Mapping[str, Device]) -> dict[str, SiteData]:
    """The sites' data with every image seen through its site's device."""
    parts = {name: [getattr(data, split) for split in SPLITS] for name, data in sites.items()}
    rows = {name: np.concatenate([part.rows for part in own]) for name, own in parts.items()}
    keys = {name: np.concatenate([part.keys for part in own]) for name, own in parts.items()}
    cache: Any = AcquiredImages(next(iter(parts.values()))[0].cache, devices, rows, keys)
    return {
        name: replace(
            data,
            **{
                split: replace(part, cache=cache, keys=acquired_keys(part.keys, devices[name]))
                for split, part in zip(SPLITS, parts[name], strict=True)
            },
        )
        for name, data in sites.items()
    }


def heterogeneity(counts: Mapping[str, Sequence[int]]) -> float | None:
    """Mean Jensen-Shannon divergence (base 2: 0 alike, 1 disjoint) of class shares over all pairs of sites.

    Args:
        counts: images of each class ``(C,)`` at each site (multi-label: labels). A site without any is left out.

    Returns:
        none with fewer than two sites.
    """
    from scipy.spatial.distance import jensenshannon

    rows = [np.asarray(row, dtype=np.float64) for _, row in sorted(counts.items()) if sum(row)]
    shares = [row / row.sum() for row in rows]
    pairs = [jensenshannon(a, b, base=2) ** 2 for position, a in enumerate(shares) for b in shares[position + 1 :]]
    return float(np.mean(pairs)) if pairs else None


def one_class_notes(counts: Mapping[str, Sequence[int]], classes: Sequence[str], task: str) -> list[str]:
    """A sentence for each site whose training images all have the same class (multi-label: have no label)."""
    notes = []
    for name, row in sorted(counts.items()):
        present = [label for label, count in zip(classes, row, strict=True) if count]
        if task == "multilabel" and not present:
            notes.append(f"[one-class] site {name}: no training image has any label; it cannot learn one from another")
        elif task != "multilabel" and len(present) == 1:
            notes.append(
                f"[one-class] site {name}: all its training images are {present[0]}; alone it learns nothing, and its "
                "balanced accuracy and AUROC are not defined or not meaningful"
            )
    return notes


def class_counts(labels: np.ndarray, num_classes: int) -> list[int]:
    """Images of each class, ``(C,)``, from class indices ``(N,)`` or label vectors ``(N, C)``."""
    if labels.ndim == 2:
        return [int(n) for n in labels.sum(axis=0)]
    return [int(n) for n in np.bincount(labels.astype(np.int64), minlength=num_classes)]


_BUILT: OrderedDict[str, VirtualSites] = OrderedDict()
_LOCK = threading.Lock()


def shared_sites(config: SimulateConfig, run_dir: Path) -> VirtualSites:
    """:func:`build_sites`, kept for the life of the process (the last two)."""
    key = json.dumps(
        [asdict(config.dataset), asdict(config.partition), config.model.image_side, config.seed, str(run_dir)]
    )
    with _LOCK:
        if key not in _BUILT:
            _BUILT[key] = build_sites(config, run_dir)
            while len(_BUILT) > 2:
                _BUILT.popitem(last=False)
        return _BUILT[key]


def forget_sites() -> None:
    """Let :func:`shared_sites` read anew what it keeps."""
    with _LOCK:
        _BUILT.clear()


def open_virtual_site(context: Any, spec: RunSpec, header: dict[str, Any]) -> SiteData:
    """Source of a virtual site's data for the ClientApp, in this process, a Ray actor or Flower's own.

    Raises:
        SiteError: the site is away in this round (``conditions``).
    """
    config = config_from_run_config(context.run_config)
    name = virtual_site_name(context, config)
    if header.get("round") and is_away(config, name, str(header["stage"]), int(header["round"])):
        raise SiteError(ABSENT)
    return shared_sites(config, Path(str(context.run_config["run-dir"]))).get(name)


def virtual_site_name(context: Any, config: SimulateConfig) -> str:
    """``node_config["site"]`` where the engine can say so, else the ``partition-id``-th of the arm's sites by name."""
    name = context.node_config.get("site")
    if name is None:
        named = str(context.run_config.get("sites") or "")
        sites = shared_sites(config, Path(str(context.run_config["run-dir"])))
        names = named.split("|") if named else sorted(sites.sites)
        name = names[int(context.node_config["partition-id"])]
    return str(name)


def is_away(config: SimulateConfig, site: str, stage: str, round_index: int) -> bool:
    """Whether a site takes no part in a round: named in ``conditions.absent``, or drawn for ``conditions.dropout``.

    The baselines' pooled data are never away. The draw names the site, the stage and the round, so a resumed run meets
    the same absences.
    """
    if site == POOLED:
        return False
    for name, first, last in map(parse_absence, config.conditions.absent):
        if name == site and first <= round_index <= last:
            return True
    draw = numpy_generator(config.seed, "dropout", site, stage, round_index).random()
    return bool(draw < config.conditions.dropout)


def pace_of(config: SimulateConfig, site: str) -> float:
    """Share of a round's steps that a site manages (``conditions.slow``)."""
    return 1.0 / dict(map(parse_slowness, config.conditions.slow)).get(site, 1.0)


def check_named_sites(config: SimulateConfig, sites: Collection[str]) -> None:
    """Refuse conditions of sites that are not there.

    Raises:
        ConfigError: names the entry and the sites.
    """
    named = [("absent", entry, parse_absence(entry)[0]) for entry in config.conditions.absent]
    named += [("slow", entry, parse_slowness(entry)[0]) for entry in config.conditions.slow]
    for key, entry, name in named:
        if name not in sites:
            raise ConfigError(f"conditions.{key}", entry, f"one of the sites {', '.join(sorted(sites))}")
