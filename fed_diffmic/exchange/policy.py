"""A site's policy: what may be asked of it and what may leave it. What is not named is denied.

The policy is the site's own configuration. It is applied twice: to a request before any work is done
(:meth:`SitePolicy.check`, :meth:`SitePolicy.check_images`) and to what would leave (:meth:`SitePolicy.release`),
whatever computed it. A denial crosses as a code with a fixed sentence, one for each rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fed_diffmic.config.hours import minutes_left, parse_hours
from fed_diffmic.config.owners import ALGORITHMS
from fed_diffmic.config.plugins import check_trusted
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange import failures, policy_masking
from fed_diffmic.exchange.codecs import DELTA
from fed_diffmic.exchange.floors import Basis
from fed_diffmic.exchange.limits import beyond_limits
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import NEED_BASE, NEED_WEIGHTS, Payload, Tensors
from fed_diffmic.exchange.screening import update_norm
from fed_diffmic.training import pooled
from fed_diffmic.training.few import suppress, told, without_owners
from fed_diffmic.training.subgroups import enough

BASE = "base/"
SUMS_OF = "nll/"
SUMS = f"{SUMS_OF}0/0"
TEST_IMAGES, TEST_PATIENTS, COMPLETE = "test/n", "test/groups", "test/complete"
POSITIVES = "test/positives/"
OF_CLASS = "test/class_coverage/"
COUNTED = "sets/lac/0/0/0"
COUNTS = ("images", "class_counts")
_QUOTED = {"run", "arm", "stage", "round", "site", "request"}
_HEADERS: dict[str, set[str]] = {
    NEED_BASE: set(),
    NEED_WEIGHTS: set(),
    "labels.reply": {"run", "request", "classes", "task"},
    "query.reply": {"run", "arm", "request", "site", *COUNTS},
    "mask.reply": {*_QUOTED, "answer"},
    "train.reply": {*_QUOTED, "num_examples", "state", "ledger", "claim"},
    "evaluate.reply": _QUOTED,
    "conform.reply": _QUOTED,
    "assess.reply": _QUOTED,
    "deliver.reply": {"run", "arm", "request", "site", "model"},
}


@dataclass(frozen=True)
class Denial:
    """What the policy does not allow.

    Attributes:
        code: a key of :data:`fed_diffmic.exchange.failures.FAILURES`; all that the coordinator learns.
        detail: for the site's own log.
    """

    code: int
    detail: str

    @property
    def sentence(self) -> str:
        """The fixed sentence of the code."""
        return failures.FAILURES[self.code]


class Names:
    """A list of names in which ``*`` stands for any text; nothing else is special.

    Args:
        patterns: none of them: nothing is named.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        parts = (".*".join(re.escape(part) for part in pattern.split("*")) for pattern in patterns)
        self._matches = [re.compile(part, re.DOTALL) for part in parts]

    def __contains__(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._matches)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are not named, in order."""
        return [name for name in names if name not in self]


class SitePolicy:
    """The rules of one site.

    Args:
        config: group ``policy``.
        protected: stages that this site trains with differential privacy (``privacy.stages``); none: it does not.

    Raises:
        ConfigError: ``policy.hours`` cannot be read.
    """

    def __init__(self, config: PolicyConfig, protected: Collection[str] = ()) -> None:
        self.config = config
        self.protected = frozenset(protected)
        self._hours = parse_hours(config.hours)
        self._tensors = Names(config.tensors)
        self._metrics = Names(config.metrics)

    # ---- before any work ---------------------------------------------------------------------
    def check(
        self, kind: str, spec: RunSpec | None, request: Payload, *, dataset: str, now: datetime | None = None
    ) -> Denial | None:
        """The first rule that a request breaks, or none.

        Args:
            kind: ``labels``, ``query``, ``mask``, ``train``, ``evaluate``, ``conform``, ``assess`` or ``deliver``.
            spec: the request's; none for ``labels``.
            request: already found to be well-formed (:func:`client.requests.check_request`).
            dataset: layout of the site's data (``dataset.name``).
            now: local time; none: the clock's.
        """
        denial = self._check_use(kind, spec, request.header, dataset)
        if denial is not None or spec is None:
            return denial
        if kind in ("mask", "train", "evaluate", "conform", "assess"):
            denial = self._check_stage(kind, spec, request.header, now)
            if denial is None and kind != "mask":
                judge = self._check_training if kind == "train" else self._check_metrics
                denial = judge(spec, request)
        if denial is None and kind == "deliver" and minutes_left(self._hours, now or datetime.now()) <= 0:
            denial = Denial(failures.POLICY_HOURS, "no time is left by policy.hours")
        if denial is None:  # last: it looks at the whole network
            beyond = beyond_limits(self.config.limits, kind, spec, request.header.get("stage"))
            denial = None if beyond is None else Denial(*beyond)
        return denial

    def check_images(
        self, kind: str, spec: RunSpec, stage: str, images: int, batches: int | None = None
    ) -> Denial | None:
        """Rules that depend on how many training images the site has, or none that is broken.

        Args:
            images: of the training set.
            batches: steps of a pass where it is not the images over the batch size (private training).
        """
        if kind != "train":
            return None
        rules, cfg = self.config, spec.stage(stage)
        if images < max(1, rules.min_count):
            return Denial(failures.POLICY_COUNT, f"{images} training images; policy.min_count is {rules.min_count}")
        steps = cfg.local_steps(images) if batches is None else cfg.steps or max(1, round(cfg.epochs * batches))
        batches = batches or math.ceil(images / cfg.batch_size)
        if steps > rules.max_steps:
            return Denial(failures.POLICY_STEPS, f"{steps} steps; policy.max_steps is {rules.max_steps}")
        if cfg.steps and cfg.steps / batches > rules.max_epochs:
            passes = f"{cfg.steps} steps are {cfg.steps / batches:.1f} epochs here"
            return Denial(failures.POLICY_EPOCHS, f"{passes}; policy.max_epochs is {rules.max_epochs:g}")
        return None

    def check_sent(self, tensors: Tensors) -> Denial | None:
        """What may not be trained of tensors that came, or none.

        Asked twice: of what travelled, and once the request's weights are whole. A tensor that travelled coded has the
        type that it is decoded to.
        """
        sent = {name.removeprefix(DELTA): value for name, value in tensors.items() if not name.startswith(BASE)}
        lacking = self._tensors.lacks(sent)
        if lacking:
            return Denial(failures.POLICY_TENSORS, f"policy.tensors does not name {lacking[0]}")
        found = {value.dtype.name for name, value in sent.items() if DELTA + name not in tensors}
        types = found - set(self.config.dtypes)
        if types:
            return Denial(failures.POLICY_DTYPES, f"policy.dtypes does not name {sorted(types)[0]}")
        return None

    def time_left(self, now: datetime | None = None) -> tuple[float, int]:
        """Seconds that a task may take if it begins ``now``, and the code of the rule that ends it."""
        open_for = 60.0 * minutes_left(self._hours, now or datetime.now())
        if open_for < self.config.max_seconds:
            return open_for, failures.POLICY_HOURS
        return self.config.max_seconds, failures.POLICY_SECONDS

    # ---- what leaves -------------------------------------------------------------------------
    def release(self, payload: Payload, reference: Tensors, basis: Basis | None = None) -> Payload | Denial:
        """The reply as it may leave, metrics that must not leave removed; or why nothing of it may.

        Args:
            payload: the reply as computed.
            reference: the tensors that came, from which the size of an update is measured.
            basis: images and patients that went into the metrics; none: as many as the reply itself says, and as many
                patients as images.
        """
        allowed = _HEADERS.get(payload.kind)
        if allowed is None or not set(payload.header) <= allowed:
            return Denial(
                failures.POLICY_METRICS, f"a reply of kind {payload.kind} with header {sorted(payload.header)}"
            )
        if payload.kind in policy_masking.FIGURE_REPLIES and MASKED in payload.tensors:
            said = policy_masking.words_beyond(payload)
            return Denial(failures.POLICY_MASKING, said) if said else replace(payload, metrics={})
        if payload.tensors and payload.kind != "train.reply":
            return Denial(failures.POLICY_TENSORS, f"a reply of kind {payload.kind} with tensors")
        if payload.kind == "labels.reply":
            return self._classes(payload.header["classes"]) or payload
        if payload.kind == "mask.reply":
            return replace(payload, metrics={})
        if self.config.secure_aggregation == "required" and payload.kind in policy_masking.TOLD:
            if payload.kind == "query.reply" and not self.protected:
                payload = replace(payload, header={**payload.header, **self._counts(payload.header, basis)})
            return policy_masking.withheld(payload)
        if payload.kind == "query.reply" and self.protected:
            return replace(payload, metrics={})  # its counts are noised: small ones say no more than large ones
        if payload.kind == "query.reply":
            return replace(payload, header={**payload.header, **self._counts(payload.header, basis)}, metrics={})
        if MASKED in payload.tensors:
            said = policy_masking.words_beyond(payload)
            return Denial(failures.POLICY_MASKING, said) if said else replace(payload, metrics={})
        if payload.kind == "train.reply":
            denial = self._check_update(payload, reference)
            # Under privacy the weight is a public constant, not a number of images.
            count = math.inf if self._private(payload) else payload.header["num_examples"]
            if basis is not None and not self._private(payload):
                count = min(count, basis.images)
            return denial or replace(payload, metrics=self._own_metrics(payload, count, basis))
        if payload.kind == "conform.reply":
            return replace(payload, metrics=self._counts_by_cell(payload.metrics, basis))
        if payload.kind == "deliver.reply":
            return replace(payload, metrics={})
        if payload.kind == "assess.reply":
            return replace(payload, metrics=self._test_metrics(payload.metrics))
        return replace(payload, metrics=self._own_metrics(payload, payload.metrics.get("num_examples", 0), basis))

    def summed(self, payload: Payload, basis: Basis | None) -> Payload | Denial:
        """Figures as they may go into a masked sum with those of other sites, or why they may not.

        All must be named and rest on enough, as if ``payload`` left without masks: a figure that some sites of a sum
        leave out would be that of the others alone. Counts for prediction sets are as they would leave.
        """
        if self.config.secure_aggregation == "required" and not self.config.summed_metrics:
            return Denial(failures.POLICY_METRICS, "policy.summed_metrics is false")
        images = payload.metrics.get("num_examples", 0)
        if payload.kind != "evaluate.reply" and images < self.config.floors.sums_images:
            return Denial(failures.POLICY_METRICS, "too few images for a table of counts (floors.sums_images)")
        found = self._own_metrics(payload, images, basis)
        few = "is not named in policy.metrics, or rests on too few images or patients"
        if lacking := [name for name in without_owners(payload.metrics) if name not in found]:
            return Denial(failures.POLICY_METRICS, f"{lacking[0]} {few}")
        if payload.kind == "conform.reply":
            least, patients = self.config.min_count, self.config.floors.figure_patients
            payload = replace(payload, metrics=told(payload.metrics, least, patients, summed=True))
        return payload

    def _check_update(self, payload: Payload, reference: Tensors) -> Denial | None:
        missing = self._tensors.lacks(payload.tensors) or [n for n in payload.tensors if n not in reference]
        if missing:
            return Denial(failures.POLICY_TENSORS, f"{missing[0]} is not named in policy.tensors, or did not come")
        types = {value.dtype.name for value in payload.tensors.values()} - set(self.config.dtypes)
        if types:
            return Denial(failures.POLICY_DTYPES, f"policy.dtypes does not name {sorted(types)[0]}")
        norm = update_norm(payload.tensors, reference)
        if not norm <= self.config.max_update_norm:
            return Denial(
                failures.POLICY_NORM, f"norm {norm:.6g}; policy.max_update_norm is {self.config.max_update_norm:g}"
            )
        if payload.header["num_examples"] < self.config.min_count and not self._private(payload):
            return Denial(failures.POLICY_COUNT, f"fewer training images than {self.config.min_count}")
        return None

    def _private(self, payload: Payload) -> bool:
        return payload.header["stage"] in self.protected

    def _own_metrics(self, payload: Payload, images: float, basis: Basis | None) -> dict[str, float]:
        """Metrics that are named and rest on enough; the others are left out."""
        floors, patients = self.config.floors, images
        if basis is not None and not (payload.kind == "train.reply" and self._private(payload)):
            patients = basis.patients
        if images < self.config.min_count or patients < floors.figure_patients:
            return {}
        found = {name: value for name, value in payload.metrics.items() if name in self._metrics}
        # The table holds hundreds of sums, from which the scores of few images could be computed one by one.
        if floors.sums_images and (images < floors.sums_images or payload.header.get("round") != 0):
            found = {name: value for name, value in found.items() if not name.startswith(SUMS_OF)}
        return found

    def _counts_by_cell(self, metrics: Mapping[str, float], basis: Basis | None) -> dict[str, float]:
        """Those named, of enough in all, in each state and in each cell (:mod:`fed_diffmic.training.few`)."""
        images = metrics.get("num_examples", 0)
        floors, patients = self.config.floors, images if basis is None else basis.patients
        if images < max(self.config.min_count, floors.sums_images) or patients < floors.figure_patients:
            return {}
        found = told(metrics, self.config.min_count, floors.figure_patients).items()
        return {name: value for name, value in found if name in self._metrics}

    def _test_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Those named; none over too few images; small counts of a class left out, which :data:`COMPLETE` tells."""
        least, patients = max(1, self.config.min_count), self.config.floors.figure_patients
        if metrics.get(TEST_IMAGES, 0) < least or metrics.get(TEST_PATIENTS, math.inf) < patients:
            return {}
        names = [name for name in metrics if name.startswith(POSITIVES)]
        sizes, owners = [int(metrics[n]) for n in names], [pooled.owners_of(metrics, n.split("/")[-1]) for n in names]
        shown = dict(zip(names, suppress(sizes, self.config.min_count, owners, patients), strict=True))
        rare = {name.removeprefix(POSITIVES) for name in names if (shown[name] or 0) < least or shown[name] is None}
        metrics = pooled.told(metrics, least, patients, sorted(rare))
        found = {name: value for name, value in metrics.items() if shown.get(name, 0) is not None}
        found = {n: v for n, v in found.items() if not n.startswith(OF_CLASS) or n.split("/")[3] not in rare}
        found[COMPLETE] = float(None not in shown.values() and not self._metrics.lacks(names))
        return {name: value for name, value in enough(found, least, patients).items() if name in self._metrics}

    def _counts(self, header: Mapping[str, Any], basis: Basis | None) -> dict[str, list[int | None]]:
        """Counts of images of splits and of classes; what is suppressed is none, which is not the same as 0."""
        least, spoken = self.config.min_count, {name: list(header[name]) for name in COUNTS}
        known, patients = basis or Basis(0, 0), self.config.floors.figure_patients
        owners = known.patients_of_splits or spoken["images"]
        images: list[int | None] = [
            n if n == 0 or (n >= least and p >= patients) else None
            for n, p in zip(spoken["images"], owners, strict=True)
        ]
        counts = suppress(spoken["class_counts"], least, known.patients_of_classes or None, patients)
        if images[0] is None or "class_counts" not in self._metrics:
            counts = [None] * len(counts)
        return {"images": images if "images" in self._metrics else [None] * len(images), "class_counts": counts}

    # ---- rules -------------------------------------------------------------------------------
    def _check_use(self, kind: str, spec: RunSpec | None, header: Mapping[str, Any], dataset: str) -> Denial | None:
        rules = self.config
        if header["run"] not in Names(rules.runs):
            return Denial(failures.POLICY_RUN, f"policy.runs does not name {header['run']}")
        if dataset not in Names(rules.datasets):
            return Denial(failures.POLICY_DATASET, f"policy.datasets does not name {dataset}")
        if spec is None:
            return None
        if spec.strategy.name not in Names(rules.strategies):
            return Denial(failures.POLICY_STRATEGY, f"policy.strategies does not name {spec.strategy.name}")
        try:  # before anything builds the algorithm: until here no code of its package was imported
            check_trusted(ALGORITHMS, spec.strategy.name, rules.plugins)
        except ConfigError as error:
            return Denial(failures.POLICY_PLUGIN, f"{error.cause}. {error.remedy}")
        if said := policy_masking.run_beyond(rules, spec):
            return Denial(failures.POLICY_MASKING, said)
        if spec.strategy.codec not in rules.codecs:
            return Denial(failures.POLICY_CODEC, f"policy.codecs does not name {spec.strategy.codec}")
        stage = header.get("stage")
        protected = bool(self.protected) if stage is None else stage in self.protected
        if rules.privacy == "required" and not protected:
            return Denial(failures.POLICY_PRIVACY, "policy.privacy=required and privacy.stages does not protect this")
        # One that lets updates leave under masks alone keeps back the counts of classes, named or not.
        lacking = self._metrics.lacks(COUNTS[:1] if rules.secure_aggregation == "required" else COUNTS)
        if kind == "query" and lacking:
            return Denial(failures.POLICY_METRICS, f"policy.metrics does not name {lacking[0]}")
        return self._classes(spec.classes)

    def _classes(self, classes: Sequence[str]) -> Denial | None:
        lacking = Names(self.config.classes).lacks(classes)
        return Denial(failures.POLICY_CLASSES, f"policy.classes does not name {lacking[0]}") if lacking else None

    def _check_stage(self, kind: str, spec: RunSpec, header: Mapping[str, Any], now: datetime | None) -> Denial | None:
        rules, stage, index = self.config, header["stage"], header["round"]
        if stage not in rules.stages:
            return Denial(failures.POLICY_STAGE, f"policy.stages does not name {stage}")
        rounds = spec.stage(stage).rounds or 0
        trained = (1, rounds)
        allowed = {"mask": (0, rounds), "train": trained, "evaluate": (0, rounds)}
        first, last = allowed.get(kind, (0, 0))  # test images: once in a run
        if rounds > rules.max_rounds or not first <= index <= last:
            return Denial(failures.POLICY_ROUNDS, f"round {index} of {rounds}; policy.max_rounds is {rules.max_rounds}")
        seconds, code = self.time_left(now)
        return Denial(code, "no time is left by policy.hours or policy.max_seconds") if seconds <= 0 else None

    def _check_training(self, spec: RunSpec, request: Payload) -> Denial | None:
        rules, cfg = self.config, spec.stage(request.header["stage"])
        if said := policy_masking.request_beyond(spec, request.header):
            return Denial(failures.POLICY_MASKING, said)
        denial = self.check_sent(request.tensors)
        if denial is not None:
            return denial
        if "num_examples" not in self._metrics and not policy_masking.is_masked(spec):
            return Denial(failures.POLICY_METRICS, "policy.metrics does not name num_examples, the update's weight")
        if rules.max_update_norm <= 0:
            return Denial(failures.POLICY_NORM, "policy.max_update_norm is 0")
        if not cfg.steps and cfg.epochs > rules.max_epochs:
            return Denial(failures.POLICY_EPOCHS, f"{cfg.epochs:g} epochs; policy.max_epochs is {rules.max_epochs:g}")
        if (cfg.steps or 1) > rules.max_steps:
            return Denial(failures.POLICY_STEPS, f"{cfg.steps} steps; policy.max_steps is {rules.max_steps}")
        return None

    def _check_metrics(self, spec: RunSpec, request: Payload) -> Denial | None:
        if said := policy_masking.request_beyond(spec, request.header):
            return Denial(failures.POLICY_MASKING, said)
        if request.kind == "assess":
            wanted = [TEST_IMAGES]
        elif request.kind == "conform":
            wanted = ["num_examples", COUNTED]
        else:
            wanted = ["num_examples", "loss"] + ([SUMS] if request.header["sums"] else [])
        lacking = self._metrics.lacks(wanted)
        return Denial(failures.POLICY_METRICS, f"policy.metrics does not name {lacking[0]}") if lacking else None
