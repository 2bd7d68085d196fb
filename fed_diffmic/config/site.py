"""The configuration of ``fed-diffmic client``: one site's data, its way to the coordinator, and its policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from fed_diffmic.config.codecs import CODECS
from fed_diffmic.config.dicom import DicomConfig
from fed_diffmic.config.fields import Checked, option
from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.config.policy_limits import Limits
from fed_diffmic.config.policy_study import StudyRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import DatasetConfig


@dataclass(frozen=True)
class SiteGroup(Checked):
    """Group ``site``: who this site is and where it keeps what it must keep."""

    name: str = option("", "name of the site, as in the coordinator's roster")
    folder: str | None = option(
        None,
        "folder of the site's own state (0700): kept updates, audit log, findings, logs. Holds or derives from "
        "patients' data: put it on an encrypted volume",
        path=True,
    )
    device: list[str] = option(
        doc="auto, cpu, cuda, cuda:N or mps; several of one kind, as [cuda:0, cuda:1], share each step of a local "
        "update (docs/performance.md); the first does everything else",
        factory=lambda: ["auto"],
    )
    val_fraction: float = option(0.15, "share of groups for validation", gt=0, lt=1)
    test_fraction: float = option(0.2, "share of groups for the site's own test", ge=0, lt=1)
    split_seed: int = option(
        0, "seed of the split, with the site's name; the consortium's seed by custom", ge=0, lt=2**31
    )
    keep_days: float = option(
        30.0, "days after which kept updates, bases and states of runs that are over are removed", gt=0, le=3650
    )
    turn: str | None = option(
        None,
        "file that the sites of one machine share (made if it is not there): one of them at a time holds a request, "
        "its model and its optimizer in memory. None: all of them at once. A site that dies in its turn frees it",
        path=True,
    )
    turn_s: float = option(
        21600.0,
        "seconds after which a site that waits for its turn gives the request back to the coordinator (2017), which "
        "asks it again while the round's time lasts",
        gt=0,
        le=7 * 86400,
    )


@dataclass(frozen=True)
class CoordinatorConfig(Checked):
    """Group ``coordinator``: the way to the coordinator; only outbound connections are made."""

    address: str | None = option(None, "host:port of the coordinator's public listener")
    ca: str | None = option(None, "certificate of the consortium's CA (PEM), from the kit", path=True)
    key: str | None = option(None, "this site's private key (OpenSSH EC, 0600)", path=True)
    key_passphrase: str | None = option(
        None,
        "file of the passphrase that opens `key` (0600), elsewhere than the key; none: the credential "
        "`<name of the key's file>.passphrase` of the service, if the key is locked",
        path=True,
    )
    public_key: str | None = option(
        None,
        "the coordinator's public signing key (OpenSSH), coordinator.pub of the kit: requests are taken only under its "
        "seal; verifies models and audit logs. Needed without insecure",
        path=True,
    )
    proxy: str | None = option(None, "http://host:port of a proxy; none: HTTPS_PROXY is not looked at")
    insecure: bool = option(False, "true: no TLS, no authentication; for trials on one machine only")
    heartbeat_s: float = option(30.0, "interval of Flower's heartbeats", ge=1, le=300)
    poll_s: float = option(
        0.5,
        "longest pause between asking the coordinator for work, seconds; a twentieth of the time since this site's "
        "last reply where that is shorter",
        ge=0.1,
        le=60,
    )
    retry_min_s: float = option(
        1.0, "first pause before connecting again; doubled each time, with jitter", gt=0, le=600
    )
    retry_max_s: float = option(60.0, "longest pause before connecting again", gt=0, le=3600)
    give_up_s: float = option(
        7 * 86400.0, "seconds without any contact after which the client ends with an error", gt=0, le=90 * 86400
    )


@dataclass(frozen=True)
class PolicyConfig(Checked):
    """Group ``policy``: what the coordinator may ask and what may leave. What is not named is denied.

    Names may hold ``*`` for any text. The coordinator cannot change or see it.
    """

    name: str = option("closed", "preset this started from: closed denies everything", choices=("closed", "standard"))
    runs: list[str] = option(doc="names of runs that may use the data", factory=list)
    datasets: list[str] = option(doc="layouts (dataset.name) that may be used", factory=list)
    classes: list[str] = option(doc="class names that a run may ask for", factory=list)
    stages: list[str] = option(doc="stages", factory=list, choices=("guidance", "diffusion", "plain"))
    strategies: list[str] = option(doc="federated algorithms", factory=list)
    codecs: list[str] = option(
        doc="codecs (strategy.codec) in which weights may come and updates leave; rules and metrics see decoded values",
        factory=lambda: ["float32"],
        choices=CODECS,
    )
    plugins: list[str] = option(
        doc="packages from outside this program, or single names that they offer, whose code may be run here: "
        "algorithms that a run asks for, the site's own data set. In full, without *",
        factory=list,
    )
    tensors: list[str] = option(doc="names of tensors that may leave in an update", factory=list)
    dtypes: list[str] = option(doc="types in which they may leave", factory=list)
    max_update_norm: float = option(
        0.0, "largest L2 norm of an update (difference to the weights that came, over all tensors)", ge=0
    )
    metrics: list[str] = option(doc="metrics that may leave", factory=list)
    min_count: int = option(
        10, "metrics and counts over fewer images than this do not leave; a count is marked suppressed", ge=0
    )
    max_rounds: int = option(0, "rounds of a stage", ge=0)
    max_epochs: float = option(0.0, "passes over the training images in a round", ge=0)
    max_steps: int = option(0, "optimizer steps in a round", ge=0)
    max_seconds: float = option(0.0, "seconds a round may take", ge=0)
    hours: list[str] = option(
        doc="when work may be done, local time: `always`, or days and times such as `mon-fri 18:00-07:00`", factory=list
    )
    privacy: str = option(
        "required",
        "whether a stage that privacy.stages does not protect may train here",
        choices=("required", "none"),
    )
    secure_aggregation: str = option(
        "allowed",
        "required: an update leaves in a masked sum only (strategy.secure_aggregation=masked), and no figure, no count "
        "of classes, validation or test images leaves (but see summed_metrics); allowed: masked or as it is, as the "
        "run says; off: never masked",
        choices=("required", "allowed", "off"),
    )
    min_sites: int = option(
        2,
        "masked sums: how many other sites, whose keys this site's people accepted, must be in a sum beside this one",
        ge=2,
        le=200,
    )
    summed_metrics: bool = option(
        False,
        "with secure_aggregation=required: metrics of validation images that policy.metrics names, the calibration's "
        "sums, and once at the end counts for prediction sets (if it names sets/* and unsure/*) and of test images (if "
        "it names test/* and points/*), go into masked sums over one set of sites in a run, min_sites others at least "
        "among them; false: this site gives none, and weights that come are not evaluated here",
    )
    take_model: str = option(
        "never",
        "whether a finished run's signed model is kept under `models/` of site.folder when the coordinator sends it: "
        "keep, if it is of a run that this site took part in, under the pinned key, and what this site was sent last",
        choices=("never", "keep"),
    )
    model_mib: float = option(2048.0, "largest model that is kept, MiB (`paper`'s: 530)", ge=1, le=2**20)
    budget: BudgetRules = field(default_factory=BudgetRules)
    limits: Limits = field(default_factory=Limits)
    study: StudyRules = field(default_factory=StudyRules)
    floors: Floors = field(default_factory=Floors)


@dataclass(frozen=True)
class SiteConfig(Checked):
    """Everything that ``fed-diffmic client`` and ``preflight`` need."""

    site: SiteGroup = field(default_factory=SiteGroup)
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    dicom: DicomConfig = field(default_factory=DicomConfig)
