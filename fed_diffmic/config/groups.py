"""The groups whose choices are code: data set, federated algorithm, partitioner.

What stands here is common to all choices of a group. What belongs to one of them it declares itself, beside its code
(:mod:`fed_diffmic.config.owners`): here is only, for what signed specifications and stored runs have always held,
where it is (:func:`~fed_diffmic.config.owners.owned`) and the value that it has where nobody uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fed_diffmic.config.codecs import CODECS
from fed_diffmic.config.fields import Checked, option
from fed_diffmic.config.owners import DATASETS, PARTITIONERS, Own, named, owned
from fed_diffmic.config.plugins import find

PERSONAL = ("finetune", "head", "mixture")


@dataclass(frozen=True)
class DatasetOptions(Own):
    """Base of a data set's options; what it says of itself is careful unless it says otherwise."""

    #: ``dataset.split=published`` may be asked for
    published_split: ClassVar[bool] = False
    #: ``dataset.root`` must be there before it is read
    needs_root: ClassVar[bool] = True
    #: ``dataset.root`` may be a file
    root_file: ClassVar[bool] = False
    #: everybody may see its images: a report may show some (``run.examples``)
    public: ClassVar[bool] = False


@dataclass(frozen=True)
class PartitionOptions(Own):
    """Base of a partitioner's options."""

    #: the data say which sites there are; ``partition.sites`` is not used
    given_sites: ClassVar[bool] = False


@dataclass(frozen=True)
class DatasetConfig(Checked):
    """Group ``dataset``: which published layout, where it lies, what is common to all sites."""

    group: ClassVar[str] = "dataset"

    name: str = named("dataset", "phantoms", "published layout that reads the folder")
    root: str | None = option(
        None, "folder of the data set (phantoms: where to draw them; default <run.dir>/phantoms)", path=True
    )
    on_bad_image: str = option(
        "error",
        "a missing or unreadable image: stop before any work, or leave it out and say how many",
        choices=("error", "skip"),
    )
    task: str | None = option(
        None,
        "what is predicted; none: what the layout says (table: multilabel if any row holds '|', else multiclass)",
        choices=("multiclass", "ordinal", "multilabel"),
    )
    classes: list[str] | None = option(
        None, "class names in the order of the outputs; none: the published order (table: sorted names found)"
    )
    split: str = option(
        "none",
        "'published' keeps the data set's own train/test (HAM10000 and APTOS2019: DiffMIC's; ChestX-ray14: the lists); "
        "'none' splits each site by group (a 'split' column of a table always wins)",
        choices=("none", "published"),
    )
    no_finding: bool = owned("dataset.no_finding", False, ("chestxray14",))
    mean: list[float] = option(
        doc="normalisation constant for each channel of [0, 1] intensities (R, G, B)",
        factory=lambda: [0.5, 0.5, 0.5],
        ge=0,
        le=1,
    )
    std: list[float] = option(
        doc="normalisation constant for each channel of [0, 1] intensities (R, G, B)",
        factory=lambda: [0.5, 0.5, 0.5],
        gt=0,
        le=1,
    )
    modality: str = option(
        "none",
        "decides the augmentation (flips, rotation; docs/data.md) and, for phantoms, what is drawn",
        choices=("none", "dermoscopy", "fundus", "chest", "ultrasound"),
    )
    subgroups: list[str] = option(
        doc="columns of the table (table, ham10000) whose values are subgroups, such as sex and age: metrics of each, "
        "in the report and, where policy.metrics names subgroup/*, to the coordinator",
        factory=list,
        sparse=True,
    )
    cache_dir: str | None = option(
        None,
        "folder for decoded copies of the images (holds patients' images; 0700); none: ~/.cache/fed_diffmic",
        path=True,
    )
    phantom_images: int = owned("dataset.phantom_images", 480, ("phantoms",))
    options: dict[str, Any] = option(doc="what the data set chosen declares beyond these", factory=dict, sparse=True)


@dataclass(frozen=True)
class StrategyConfig(Checked):
    """Group ``strategy``: what the server does with the updates, what sites add to theirs."""

    group: ClassVar[str] = "strategy"

    name: str = named("strategy", "fedavg", "federated algorithm (`fed-diffmic strategies` says a line of each)")
    weighting: str = option(
        "examples",
        "a site's weight in the average: its training images, or equal (median, trimmed_mean and krum: always equal)",
        choices=("examples", "equal"),
    )
    participation: float = option(
        1.0, "share of the sites that train in a round, drawn by the run's seed (at least one site)", gt=0, le=1
    )
    mu: float = owned("strategy.mu", 0.01, ("fedprox",))
    server_lr: float = owned("strategy.server_lr", 1.0, ("fedavgm", "fedadam", "fedyogi", "scaffold"))
    server_momentum: float = owned("strategy.server_momentum", 0.9, ("fedavgm", "fedadam", "fedyogi"))
    server_beta2: float = owned("strategy.server_beta2", 0.99, ("fedadam", "fedyogi"))
    server_tau: float = owned("strategy.server_tau", 1e-3, ("fedadam", "fedyogi"))
    feddyn_alpha: float = owned("strategy.feddyn_alpha", 0.1, ("feddyn",))
    ditto_lambda: float = owned("strategy.ditto_lambda", 0.1, ("ditto",))
    q: float = owned("strategy.q", 1.0, ("qfedavg",))
    lipschitz_lr: float = owned("strategy.lipschitz_lr", 0.1, ("qfedavg",))
    trim: float = owned("strategy.trim", 0.2, ("trimmed_mean",))
    false_sites: int = owned("strategy.false_sites", 0, ("krum",))
    krum_keep: int = owned("strategy.krum_keep", 1, ("krum",))
    client_clip_norm: float = option(
        1.0, "client-level privacy: largest L2 norm of a site's update, over all trained tensors, in the average", gt=0
    )
    client_noise_multiplier: float = option(
        0.0,
        "client-level privacy: standard deviation of the coordinator's noise on the sum of the clipped updates, over "
        "client_clip_norm; 0: no noise, no clipping, no claim",
        ge=0,
        le=1e6,
    )
    client_delta: float = option(
        1e-3, "client-level privacy: delta of the claim, well below one over the number of sites", gt=0, lt=1
    )
    codec: str = option(
        "float32",
        "how weights and updates cross, both ways: float32 exactly; the others code differences and add what they "
        "leave out to the next (docs/exchange.md)",
        choices=CODECS,
        sparse=True,
    )
    topk_share: float = option(
        0.05, "topk: share of each tensor's numbers that cross, those that changed most", gt=0, le=1, sparse=True
    )
    personal: list[str] = option(
        doc="what a site makes of the finished global model on its own images: fine-tuned, its heads alone fine-tuned, "
        "or mixed with the model that it trained alone; []: nothing",
        factory=list,
        choices=PERSONAL,
        sparse=True,
    )
    keep_optimizer_state: bool = option(False, "keep each site's optimizer moments from round to round (site state)")
    class_path: str | None = owned("strategy.class_path", None, ("flower",))
    options: dict[str, Any] = option(
        doc="what the algorithm chosen declares beyond these; flower: keyword arguments of the strategy", factory=dict
    )


@dataclass(frozen=True)
class PartitionConfig(Checked):
    """Group ``partition``: how one data set is divided over virtual sites; groups stay whole."""

    group: ClassVar[str] = "partition"

    name: str = named("partition", "iid", "partitioner")
    sites: int = option(4, "number of virtual sites (institution, saved: given by the data)", ge=1, le=10_000)
    alpha: float = owned("partition.alpha", 0.5, ("dirichlet",))
    classes_per_site: int = owned("partition.classes_per_site", 2, ("pathological",))
    skew: str = owned("partition.skew", "lognormal", ("quantity",))
    spread: float = owned("partition.spread", 1.0, ("quantity",))
    acquisition: float = option(
        0.0,
        "strength of each site's own device: contrast, colour cast, resolution, noise (docs/experiments.md)",
        ge=0,
        le=1,
    )
    file: str | None = owned("partition.file", None, ("saved",))
    min_images: int = option(10, "fewest images a site may have", ge=1)
    val_fraction: float = option(0.15, "share of a site's images for validation", gt=0, lt=0.5)
    test_fraction: float = option(
        0.2, "share of a site's images for the final test (folds: one over their number)", gt=0, lt=0.5
    )
    folds: int = option(
        0,
        "cross-validation: number of folds K, in each of which other images are the test images; 0: none",
        ge=0,
        le=20,
        sparse=True,
    )
    fold: int = option(0, "which of the folds: 0 to K - 1", ge=0, le=19, sparse=True)
    options: dict[str, Any] = option(doc="what the partitioner chosen declares beyond these", factory=dict, sparse=True)


def layout_options(name: str) -> type[DatasetOptions]:
    """What a data set declares, and says of itself.

    Raises:
        ConfigError: no such data set.
    """
    options: type[Any] = find(DATASETS, name).options
    return options


def partition_options(name: str) -> type[PartitionOptions]:
    """What a partitioner declares, and says of itself.

    Raises:
        ConfigError: no such partitioner.
    """
    options: type[Any] = find(PARTITIONERS, name).options
    return options
