"""A site as its ClientApp sees it: a name, a folder of its own, data from a source that the site chose.

Where the data come from is the site's own business: whoever starts the process registers a source
(:func:`register_source`). The coordinator's request never names a file.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context

from client.journal import Journal
from client.memory import MemoryStore
from client.seals import Refusals, SiteSeals
from client.start import SITE_LOG
from client.state import SiteStore
from client.watch import Watch
from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.exchange.failures import LABELS, SETTINGS, SiteError
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.exchange.policy_masking import is_masked
from fed_diffmic.files import append_line, private_folder
from fed_diffmic.provision.keys import PrivateKey, load_private, make_site_key
from fed_diffmic.reporting.rotation import set_aside
from fed_diffmic.training.stage import StageModule


class Agreement(Protocol):
    """What a site agreed to (:class:`client.studies.Studies`)."""

    def check(self, kind: str, request: Payload) -> None:
        """Raise :class:`SiteError` for a request that is not of a study that the site agreed to."""


class Models(Protocol):
    """What takes the models that the coordinator sends (:class:`client.delivery.Delivery`)."""

    def take(self, spec: RunSpec, request: Payload) -> Payload:
        """Keep the model that a request holds; raises :class:`SiteError` for one that is not to be had."""


Gate = Callable[[str], None]
Source = Callable[[Context, Any, Any], SiteData]
Folder = Callable[[Context], Path]


@dataclass(frozen=True)
class Site:
    """A site, open for one task.

    Attributes:
        name: among the sites of the run.
        folder: where bases, declared state, updates and the log are kept (0700).
        data: train, validation and test images.
        device: where this site computes.
        further: devices that share its local updates' steps with ``device``, which leads.
        keep_updates: keep the last update, so that the same request is never computed twice.
        privacy: whether and how training is protected.
        real: one of its own, with one ledger for all runs; else a virtual site.
        pace: share of a round's steps that it manages (a virtual site's simulated slowness).
        signer: signs the privacy ledger; none: a virtual site makes a key.
        witness: file beside the site's key that remembers the ledger's head; none: a virtual site.
        budget: what a run and a round may take of the privacy budget; none: a virtual site.
        draws: secret of the site that its random draws in training depend on beside the run's seed; empty: none.
        memory: hold what it is sent in this process's memory (:mod:`client.memory`): a virtual site's.
        examine: called with the stage's module, the weights that came in it, before it is trained; raises
            :class:`SiteError` where the site does not train from such weights.
        masking: its part in masked sums; none: it holds no roster of the other sites' keys.
        judge: called with what would leave without masks, and its request, before it is masked; gives what of it may
            be masked, and raises :class:`SiteError` where the site's rules do not let it leave.
    """

    name: str
    folder: Path
    data: SiteData
    device: str
    keep_updates: bool = True
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    real: bool = False
    pace: float = 1.0
    signer: PrivateKey | None = None
    witness: Path | None = None
    budget: BudgetRules | None = None
    draws: str = ""
    memory: bool = False
    examine: Callable[[StageModule], None] | None = None
    masking: MaskingSite | None = None
    judge: Callable[[Payload, Payload], Payload] | None = None
    further: tuple[str, ...] = ()

    @property
    def drawn_by(self) -> str:
        """What every seed of its training is made from beside the run's: its name, and its secret where it has one."""
        return f"{self.name}\0{self.draws}" if self.draws else self.name

    @property
    def store(self) -> SiteStore:
        """What it keeps between rounds."""
        return store_of(self.folder, self.memory)

    def key(self) -> PrivateKey:
        """What signs the privacy ledger: the site's key; a virtual site makes one in its folder."""
        if self.signer is not None:
            return self.signer
        path = private_folder(self.folder) / "ledger_key"
        if not path.exists():
            make_site_key(path)
        return load_private(path)


@dataclass(frozen=True)
class Rules:
    """What a real site enforces; a virtual one has none.

    Attributes:
        policy: what may be asked and what may leave.
        dataset: layout of the site's data (``dataset.name``), for the policy.
        audit: keeps a line of every task, refusal and payload; nothing leaves without its line.
        studies: what the site agreed to; a request beyond it is refused.
        gate: called with the task's kind before anything else; raises :class:`SiteError` (``PAUSED``, ``WITHDRAWN``)
            where the site takes no tasks now.
        seals: what checks that a request is the coordinator's own, and seals replies to it; none: an insecure trial,
            which takes requests without seals only.
        refusals: counts what was refused over its seal.
        watch: tells the supervisor what is being done; none: nobody watches from outside.
        journal: tells the site's people what was done; none: nobody reads it.
        models: takes the models that are sent; none: none is taken.
    """

    policy: SitePolicy
    dataset: str
    audit: AuditLog
    gate: Gate | None = None
    seals: SiteSeals | None = None
    refusals: Refusals = field(default_factory=Refusals)
    watch: Watch | None = None
    journal: Journal | None = None
    models: Models | None = None
    studies: Agreement = field(kw_only=True)


@dataclass(frozen=True)
class Protection:
    """How the sites of this process protect their training.

    Attributes:
        privacy: the site's configuration.
        signer: the real site's key; none: virtual sites, each makes one.
        witness: file beside that key that remembers the ledger's head.
    """

    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    signer: PrivateKey | None = None
    witness: Path | None = None


@dataclass
class _Registered:
    source: Source | None = None
    folder: Folder | None = None
    rules: Rules | None = None
    protection: Callable[[Context], Protection] | None = None
    masking: Callable[[Context, str], MaskingSite | None] | None = None


_REGISTERED = _Registered()


def register_source(
    source: Source,
    folder: Folder | None = None,
    rules: Rules | None = None,
    protection: Callable[[Context], Protection] | None = None,
    masking: Callable[[Context, str], MaskingSite | None] | None = None,
) -> None:
    """Say where this process's sites get their data.

    Args:
        source: called for each task with Flower's context, the run's spec (none when only the labels
            are asked for) and the request's header.
        folder: the site's own folder where ``node_config["site-dir"]`` does not say it.
        rules: what a real site enforces.
        protection: how training is protected; none: it is not.
        masking: a site's part in masked sums, by its name; none: it has none.
    """
    _REGISTERED.masking = masking
    _REGISTERED.protection = protection
    _REGISTERED.source = source
    _REGISTERED.folder = folder
    _REGISTERED.rules = rules


def site_rules() -> Rules | None:
    """What this process's site enforces, or none for virtual sites."""
    return _REGISTERED.rules


def site_folder(context: Context) -> Path:
    """The site's own folder.

    Raises:
        SiteError: neither the node's configuration nor the process says where it is.
    """
    named = context.node_config.get("site-dir")
    if named:
        return Path(str(named))
    if _REGISTERED.folder is None:
        raise SiteError(SETTINGS)
    return _REGISTERED.folder(context)


def in_memory(context: Context) -> bool:
    """Whether the site is one of several of this process, as ``node_config["memory"]`` says; a real one never is."""
    return _REGISTERED.rules is None and bool(context.node_config.get("memory", False))


def store_of(folder: Path, memory: bool) -> SiteStore:
    """What the site of that folder keeps."""
    return MemoryStore(folder) if memory else SiteStore(folder)


def open_data(context: Context, spec: RunSpec | None, header: Mapping[str, Any]) -> SiteData:
    """The site's data.

    Raises:
        SiteError: no source is registered.
    """
    if _REGISTERED.source is None:
        raise SiteError(SETTINGS)
    return _REGISTERED.source(context, spec, header)


def open_site(context: Context, spec: RunSpec, header: Mapping[str, Any]) -> Site:
    """The site that this context stands for, with its data.

    Raises:
        SiteError: no source is registered, or the site's labels are not the run's.
    """
    data = open_data(context, spec, header)
    if tuple(data.classes) != spec.classes or data.task != spec.task:
        raise SiteError(LABELS)
    device, *further = str(context.node_config.get("device", spec.device)).split(",")
    protection = Protection() if _REGISTERED.protection is None else _REGISTERED.protection(context)
    return Site(
        privacy=protection.privacy,
        signer=protection.signer,
        witness=protection.witness,
        budget=None if _REGISTERED.rules is None else _REGISTERED.rules.policy.config.budget,
        real=_REGISTERED.rules is not None,
        masking=_REGISTERED.masking(context, data.name)
        if _REGISTERED.masking is not None and is_masked(spec)
        else None,
        name=data.name,
        folder=site_folder(context),
        data=data,
        device=device,
        further=tuple(further),
        keep_updates=bool(context.node_config.get("keep-updates", True)),
        pace=float(context.node_config.get("pace", 1.0)),
        memory=in_memory(context),
    )


def _cause(error: BaseException) -> str:
    """What our own errors, which hold no name of an image or a patient, say of themselves; else the machine's word."""
    if isinstance(error, FedDiffmicError):
        return error.cause
    return (error.strerror or "") if isinstance(error, OSError) else type(error).__name__


def log_failure(folder: Path, task: str, code: int, error: BaseException) -> None:
    """Write the whole story into the site's own log (0600); none of it crosses."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = {"time": time.time(), "task": task, "code": code, "cause": _cause(error)}
    facts["detail"] = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # it grows then, until there is space again
        set_aside(folder / SITE_LOG)
    append_line(folder / SITE_LOG, json.dumps(facts), mode=0o600)
