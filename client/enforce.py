"""What a real site does around a task: seal, gate, policy, study, replay, time, audit log. A virtual site does none.

The order matters. A request that is not the coordinator's own is refused before anything of it is decoded or written
down; any other before data are opened or weights are loaded; what was computed passes the policy once more before it
leaves; and nothing leaves without its line in the audit log, or unsealed where there are seals.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from client.floors import SiteFloors
from client.masked_rules import Clearance, hold_to_study, purpose_of
from client.privacy import is_private, planned_batches
from client.site import Rules, Site
from client.state import SiteStore
from client.studies import kept_study
from client.watch import COMPUTING, OPENING, Mark
from client.watchdog import memory_bound
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.deadline import OutOfTimeError, time_bound
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit_facts import anchored, payload_facts, place, request_facts
from fed_diffmic.exchange.codecs import Codec, build_codec, restore
from fed_diffmic.exchange.exposure import planned_exposure
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.floors import Basis, Exposure
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import NEED_BASE, NEED_WEIGHTS, Payload, Tensors, Wire, request_name
from fed_diffmic.exchange.policy import Denial
from fed_diffmic.exchange.screening import update_norm
from fed_diffmic.exchange.seal import RequestSeal
from fed_diffmic.training.few import without_owners

ARM = "federated"
ABOUT = {
    "query": ("train", "val", "test"),
    "train": ("train",),
    "evaluate": ("val",),
    "conform": ("val",),
    "assess": ("test",),
}
LOSS_IMAGES = "loss_images"


class Enforcement:
    """One task under a site's rules.

    Args:
        rules: none: a virtual site; everything passes.
        kind: ``labels``, ``query``, ``mask``, ``train``, ``evaluate``, ``conform``, ``assess`` or ``deliver``.
        whole: name of the message of several that brought the request; empty: it came alone.
    """

    def __init__(self, rules: Rules | None, kind: str, whole: str = "") -> None:
        self.rules = rules
        self.kind = kind
        self._whole = whole
        self._facts: dict[str, Any] = {"task": kind}
        self._planned: Exposure | None = None
        self._codec: Codec | None = None
        self._decoded: Tensors = {}
        self._asked: RequestSeal | None = None
        self._request = ""
        self._told: dict[str, Any] = {}
        self._began = time.monotonic()
        self._clearance = None if rules is None else Clearance(rules.policy)

    def unseal(self, read: Callable[[], Wire]) -> Wire:
        """The request without its seal, once that is known to be the coordinator's, over this request, for this site.

        Args:
            read: gives the request as it travelled.

        Raises:
            SiteError: it is not. Before this nothing of the request was decoded.
            PayloadError: there is nothing to be read (where nothing is sealed).
        """
        if self.rules is None or self.rules.seals is None:
            return read()
        try:
            wire = read()
        except Exception as error:  # anybody may have sent it: it counts as what it lacks, and is not told apart
            raise SiteError(failures.UNSEALED) from error
        self._asked = self.rules.seals.check(wire)
        return replace(wire, seal="")

    def enter(self) -> None:
        """Before the request is even read.

        Raises:
            SiteError: the site takes no tasks now.
        """
        if self.rules is not None and self.rules.gate is not None:
            self.rules.gate(self.kind)

    def admit(self, spec: RunSpec | None, request: Payload, digest: str) -> None:
        """Write down the request and judge it, before any data are opened.

        Args:
            digest: of the request's header, as it travelled.

        Raises:
            SiteError: the policy does not allow it, it is not of a study that the site agreed to, or an old one again.
            MachineError: the audit log, or what was seen of the coordinator's, cannot be written.
        """
        if self.rules is None:
            return
        self._facts = request_facts(request, digest, request.tensor_bytes)
        self._told = place(request.header)
        if spec is not None and "stage" in request.header:
            self._told["rounds"] = int(spec.stage(request.header["stage"]).rounds or 0)
        proof: dict[str, str] = {}
        if self.rules.seals is not None and self._asked is not None:
            self.rules.seals.follow(self._asked, request.header["run"], self._whole)
            proof = self._asked.signed.facts()
        self.rules.audit.append("task", **self._facts, **proof)
        if spec is not None and spec.arm != ARM:
            raise SiteError(failures.POLICY_RUN, f"arm {spec.arm}: a real site takes part in the federation only")
        _refuse(self.rules.policy.check(self.kind, spec, request, dataset=self.rules.dataset))
        if spec is not None:  # after the policy: only a run that it names may leave its study here
            self._codec = build_codec(spec.strategy)
            self.rules.studies.check(self.kind, request)
        self._request = request_name(request.header)
        if self.rules.watch is not None:
            mark = self.rules.watch.mark(self._request)
            if mark is not None and self._allowed(mark) <= mark.allowed:
                raise SiteError(mark.code, "this request was ended before for taking too long, or too much memory")

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Let the images be read and decoded for as long as the policy says.

        Raises:
            SiteError: it took longer.
        """
        if self.rules is None:
            yield
            return
        seconds = self.rules.policy.config.limits.prepare_s
        with self._watched(OPENING, seconds, failures.POLICY_SECONDS):
            yield

    def settled(self, site: Site, request: Payload) -> Site:
        """The site with the data that may be used: where too few patients changed, those of before.

        Raises:
            SiteError: too few changed, and there is no set that differs enough from those of before.
            MachineError: what was used before cannot be read.
        """
        if self.rules is None:
            return site
        floors = self._floors(site)
        site = replace(site, data=floors.settled(site.data, self._about(site, request)))
        hold_to_study(site, request)
        if self.kind == "mask" or MASKED in request.header:
            clearance, of_test = self._clearance, purpose_of(request) == "test"
            basis = functools.partial(self._basis, site, ("test" if of_test else "val") if self.kind == "mask" else "")
            assert clearance is not None  # there are rules
            site = replace(site, judge=lambda plain, asked: clearance.judge(plain, asked, basis()))
        if self.kind != "train" or is_private(site, request.header["stage"]):
            return site
        of_round = place(request.header)
        return replace(
            site,
            draws=floors.draws(request.header["run"]),
            examine=lambda module: floors.check_isolation(module, site.data.train, site.device, of_round),
        )

    def ready(self, site: Site, spec: RunSpec, request: Payload) -> None:
        """Judge what depends on the site's data and on what it answered before.

        Args:
            request: with the whole weights.

        Raises:
            SiteError: too much work for the policy, too few images behind what would leave, or a replay.
            MachineError: what was answered before cannot be read.
        """
        header = request.header
        if self.rules is None or "stage" not in header:
            return
        if self.kind == "train":
            _refuse(self.rules.policy.check_sent(request.tensors))
            # Once more, of the whole weights: what travelled need not be what is trained from.
            self.rules.studies.check(self.kind, request)
        batches = None
        if self.kind == "train" and is_private(site, header["stage"]):
            batches = planned_batches(site, spec, header["stage"], site.data.train)
        _refuse(self.rules.policy.check_images(self.kind, spec, header["stage"], len(site.data.train), batches))
        key, name, store = (spec.run_id, spec.arm, header["stage"]), request_name(header), SiteStore(site.folder)
        # A masked sum may need another attempt at its round; which of them is opened is judged by its own memory.
        if self.kind != "mask" and not store.may_answer(key, self.kind, header["round"], name, masked=MASKED in header):
            raise SiteError(failures.REPLAY, f"round {header['round']}")
        if self._clearance is not None and MASKED in header and store.update(key, name) is not None:
            self._clearance.given = True
        # Noise bounds what a private update tells, and its batches are drawn by the site itself: no floor is needed.
        if self.kind == "train" and not is_private(site, header["stage"]):
            train = site.data.train
            planned = planned_exposure(
                spec, header["stage"], train, site=site.drawn_by, round_index=header["round"], pace=site.pace
            )
            self._floors(site).check_update(key, request_name(header), train, planned)
            self._planned = planned
        if MASKED in header:
            # Before it is computed: a refusal afterwards tells something of this one update too, and must not be had
            # more often than a round may be tried.
            store.record_answer(key, self.kind, header["round"], name)

    def deliver(self, spec: RunSpec, request: Payload) -> Payload:
        """Keep the model that a request holds; what says that, or that none is wanted here.

        Raises:
            SiteError: it is refused.
            MachineError: it cannot be written.
        """
        if self.rules is None or self.rules.models is None or self.rules.policy.config.take_model != "keep":
            quoted = {"run": spec.run_id, "arm": spec.arm, "site": request.header["site"], "model": ""}
            return Payload("deliver.reply", {**quoted, "request": request_name(request.header)})
        return self.rules.models.take(spec, request)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Let the task take as long as the policy's seconds and hours say.

        Raises:
            SiteError: it took longer.
        """
        if self.rules is None:
            yield
            return
        seconds, code = self.rules.policy.time_left()
        if self.kind not in ("train", "evaluate", "conform", "assess"):
            seconds = float("inf")
        with self._watched(COMPUTING, seconds, code):
            yield

    @contextmanager
    def _watched(self, phase: str, seconds: float, code: int) -> Iterator[None]:
        """A bound looked at between steps, and told to the supervisor, which ends the process where no step ends."""
        watch = None if self.rules is None else self.rules.watch
        told = nullcontext() if watch is None else watch.doing(self.kind, phase, self._request, seconds, code)
        try:
            with told, time_bound(seconds):
                yield
        except OutOfTimeError as error:
            raise SiteError(code, f"stopped after {seconds:.0f} s") from error

    def _allowed(self, mark: Mark) -> float:
        """What the request may take now, in the unit of its mark."""
        assert self.rules is not None
        rules = self.rules.policy.config
        if mark.code == failures.LIMIT_MEMORY:
            return memory_bound(rules.limits) / 2**20
        return rules.limits.prepare_s if mark.phase == OPENING else rules.max_seconds

    def release(self, reply: Payload, request: Payload, site: Site | None) -> Payload:
        """The reply as it leaves: judged by what it will be decoded to, what must stay removed, with the chain's head.

        Args:
            request: with the whole weights.

        Raises:
            SiteError: the policy lets nothing of it leave.
            MachineError: what was answered cannot be written down.
        """
        if self.rules is None:
            return replace(reply, metrics=without_owners(reply.metrics))
        if self._planned is not None and "loss" in reply.metrics:  # not all images need to have been in it
            reply = replace(reply, metrics={**reply.metrics, LOSS_IMAGES: float(self._planned.images)})
        self._decoded = reply.tensors
        if self._codec is not None and reply.tensors and MASKED not in reply.tensors:
            self._decoded = restore(self._codec, reply.tensors, request.tensors)
        judged = replace(reply, tensors=self._decoded)
        released = self.rules.policy.release(judged, request.tensors, None if site is None else self._basis(site))
        if isinstance(released, Denial):
            raise SiteError(released.code, released.detail)
        if self._clearance is not None:
            self._clearance.check(released, request)
        released = replace(released, tensors=reply.tensors)
        header = request.header
        if site is not None and released.kind == f"{self.kind}.reply":
            floors = self._floors(site)
            floors.record_sets(site.data, self._about(site, request))
            if self._planned is not None:
                key = (header["run"], header["arm"], header["stage"])
                floors.record_update(key, request_name(header), site.data.train, self._planned)
        if site is not None and released.kind == f"{self.kind}.reply" and "stage" in header and self.kind != "mask":
            key = (header["run"], header["arm"], header["stage"])
            SiteStore(site.folder).record_answer(key, self.kind, header["round"], request_name(header))
        return released if released.kind in (NEED_BASE, NEED_WEIGHTS) else anchored(released, self.rules.audit.head())

    def _floors(self, site: Site) -> SiteFloors:
        assert self.rules is not None
        return SiteFloors(site.folder, self.rules.policy.config.floors)

    def _about(self, site: Site, request: Payload) -> tuple[str, ...]:
        """Splits that an answer tells something of that no noise covers."""
        covered = is_private(site) if self.kind == "query" else is_private(site, request.header.get("stage", ""))
        return tuple(split for split in ABOUT.get(self.kind, ()) if split != "train" or not covered)

    def _basis(self, site: Site, split: str = "") -> Basis:
        """What the metrics of the answer rest on; with a split: what such of that split would."""
        splits = tuple(len(np.unique(part.groups)) for part in (site.data.train, site.data.val, site.data.test))
        if self._planned is not None and not split:
            return Basis(self._planned.images, self._planned.patients, splits)
        name = split or ABOUT.get(self.kind, ("train",))[0]
        owners = patients_of_classes(site.data.train, len(site.data.classes)) if self.kind == "query" else ()
        return Basis(len(getattr(site.data, name)), splits[("train", "val", "test").index(name)], splits, owners)

    def sending(self, reply: Payload, wire: Wire, request: Payload) -> None:
        """The line of a payload, before it leaves; size and tensors are those that it will be decoded to.

        Args:
            request: with the whole weights.

        Raises:
            MachineError: the audit log cannot be written.
        """
        if self.rules is None:
            return
        asked = {name: self._facts[name] for name in ("task", "request") if name in self._facts}
        facts: dict[str, Any] = asked | place(request.header) | payload_facts(reply, wire.digest)
        if reply.tensors:
            decoded = sorted(self._decoded.items())
            if MASKED not in reply.tensors:  # a log may be shown to others: it must not tell what masks hide
                facts["norm"] = update_norm(self._decoded, request.tensors)
            facts["tensors"] = [[name, v.dtype.name, list(v.shape)] for name, v in decoded]
        released = _counts(reply.header) | dict(reply.metrics)
        self.rules.audit.append("payload", **facts, figures=released)

    def seal(self, wire: Wire, request: Payload) -> Wire:
        """The reply as it travels; after its line, so that the head in its seal stands for that line too.

        Raises:
            MachineError: the audit log cannot be read.
        """
        if self.rules is None or self.rules.seals is None or self._asked is None:
            return wire
        return self.rules.seals.seal(wire, self._asked, request_name(request.header), self.rules.audit.head())

    def told(self, reply: Payload, site: Site | None) -> None:
        """Tell the site's people what was answered.

        Raises:
            MachineError: what the site agreed to cannot be read.
        """
        if self.rules is None or self.rules.journal is None or reply.kind != f"{self.kind}.reply":
            return
        if self.kind == "deliver" and not reply.header["model"]:
            return
        study = None if site is None else kept_study(site.folder, self._told["run"])
        last = study is not None and study.stages[-1] == self._told.get("stage")
        self.rules.journal.add(self.kind, {**self._told, "last": last}, seconds=time.monotonic() - self._began)

    def refused(self, code: int) -> bool:
        """The line of a refusal or a failure; false where it was only counted: strangers must not fill the disk.

        Raises:
            MachineError: the audit log cannot be written.
        """
        if self.rules is None:
            return True
        more = self.rules.refusals.facts(code)
        if more is not None:
            self.rules.audit.append("refusal", **self._facts, code=code, reason=failures.FAILURES[code], **more)
            if self.rules.journal is not None:
                self.rules.journal.add(self.kind, self._told, code=code)
        return more is not None


def patients_of_classes(train: Examples, classes: int) -> tuple[int, ...]:
    """How many patients have training images of each class; of none where there are no labels."""
    labels = np.asarray(train.labels)
    has = labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(classes)
    return tuple(len(np.unique(train.groups[column])) for column in has.T)


def _refuse(denial: Denial | None) -> None:
    if denial is not None:
        raise SiteError(denial.code, denial.detail)


def _counts(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: header[name] for name in ("images", "class_counts", "num_examples", "classes") if name in header}
