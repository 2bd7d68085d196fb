"""How a round's updates and metrics come: what is asked, what is answered, and the contract of whoever asks the sites.

The round loop (:mod:`server.rounds`) knows the sites through an :class:`Exchange` alone. :class:`server.sites.Sites` is
the plain one, whose coordinator sees every site's screened update. One that learns only sums over a set of sites
answers the same requests: who took part, what each said of itself and what travelled stand in its :class:`Outcome`
just so, the algorithm gets :attr:`TrainAnswer.sums` instead of updates, and :attr:`MetricsAnswer.summed` stands for
what the sites say. What becomes of an update as it comes is
said by whoever asks (:attr:`TrainRequest.keep`). How an update is written on the way is the
exchange's own business: a :class:`fed_diffmic.algorithms.base.SiteUpdate` holds tensors as the network has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Sums, Tensors
from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.payload import HELD, REFERENCE, Payload
from fed_diffmic.files import tensors_digest
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.sureness import Sureness
from server.hooks import Hooks

Metrics = Mapping[str, Mapping[str, float]]
"""Numbers by site, by name."""


@dataclass(frozen=True)
class Site:
    """A site that takes part.

    Attributes:
        name: unique among the sites of the run.
        node: Flower's number for it, which may change when it reconnects.
        images: number of train, val and test images; none: the site keeps that number back (never that of train).
        class_counts: training images of each class; none: kept back.
    """

    name: str
    node: int
    images: tuple[int, int | None, int | None] = (0, 0, 0)
    class_counts: tuple[int | None, ...] = ()


@dataclass
class Outcome:
    """What came of an exchange.

    Attributes:
        replies: good replies by site name; of updates that were taken (:attr:`TrainRequest.keep`) without tensors.
        missing: why each of the others is missing, in fixed sentences.
        codes: the code of each of those.
        digests: of each good reply's header as it travelled, which names the digest of its tensors.
        heads: of the chain of each site that keeps an audit log, as its good reply says.
        bytes_sent: tensor bytes both ways.
    """

    replies: dict[str, Payload] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int | str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    bytes_sent: int = 0


@dataclass(frozen=True)
class StageTask:
    """What a stage's requests have in common.

    Attributes:
        stage: name.
        frozen: the part of the base that never changes, named by its digest.
        guidance: digest of each site's own state of stage guidance on which this stage stands.
    """

    stage: str
    frozen: Tensors
    digest: str
    guidance: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(stage: str, frozen: Tensors, personal: Mapping[str, Mapping[str, str]] | None = None) -> StageTask:
        """With the digest computed once.

        Args:
            personal: digests of the sites' own states that belong to finished stages.
        """
        guidance = (personal or {}).get("guidance", {}) if stage == "diffusion" else {}
        return StageTask(stage, frozen, tensors_digest(frozen), guidance)


@dataclass(frozen=True)
class Parcel:
    """What is first sent of some weights: as little as a site needs that keeps what it was sent before.

    A site that lacks what is named says so, and gets the weights whole.

    Attributes:
        tensors: what travels, as it travels.
        held: digest of a set that is a part of the weights and was sent before; empty: there is none.
        reference: digest of the set, sent before, to which coded tensors are differences; empty: nothing is coded.
    """

    tensors: Tensors
    held: str = ""
    reference: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """What a request's header says of it."""
        named = {HELD: self.held, REFERENCE: self.reference}
        return {name: digest for name, digest in named.items() if digest}


class Keep(Protocol):
    """Takes a round's screened updates as they come, in any order."""

    def take(self, update: SiteUpdate) -> None:
        """Take one; raises ``FixedPointError``, with nothing changed, where it is too large, ``MachineError``."""

    def updates(self) -> Sequence[SiteUpdate]:
        """Those that can still be seen one by one, in the order of names."""

    def sums(self) -> Sums | None:
        """The sums of all that came, where they can be seen no more."""


@dataclass(frozen=True)
class TrainRequest:
    """One local update at every site that takes part in a round.

    Attributes:
        task: the stage.
        sent: the round's global tensors, and the algorithm's own.
        algorithm: decides which metrics must come.
        round_index: from 1.
        deadline: monotonic seconds.
        site_states: digest of the state that each site builds on.
        kept_states: digest of a state that each site must not forget, that of the best round.
        ledgers: head of each site's privacy ledger as this run saw it last, where no memory is kept over all runs; the
            site compares.
        parcel: what is first sent of ``sent``; none: everything.
        keep: what becomes of each update; none: they stay in memory.
        kinds: ``parameter``, ``buffer`` or ``counter`` of each exchanged tensor.
    """

    task: StageTask
    sent: Tensors
    algorithm: Algorithm
    round_index: int
    deadline: float
    site_states: Mapping[str, str] = field(default_factory=dict)
    kept_states: Mapping[str, str] = field(default_factory=dict)
    ledgers: Mapping[str, str] = field(default_factory=dict)
    parcel: Parcel | None = None
    keep: Keep | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainAnswer:
    """What came of a :class:`TrainRequest`, its quorum met.

    Attributes:
        updates: screened, in the order of site names; none where there are ``sums``.
        site_states: digests of the sites' new states; empty where a site keeps none.
        asked: names of those who were asked; none: everyone.
        outcome: of the exchange.
        sums: of the updates, where nobody can see them one by one any more, or ever could.
    """

    updates: Sequence[SiteUpdate]
    site_states: Mapping[str, str]
    outcome: Outcome
    asked: Set[str] | None = None
    sums: Sums | None = None


@dataclass(frozen=True)
class EvaluateRequest:
    """Metrics of some weights on every site's validation images.

    Attributes:
        task: the stage.
        tensors: what is judged, by the names that are exchanged.
        prior: the consortium's class prior ``(C,)``.
        round_index: from 1; 0: after the stage's last round.
        deadline: monotonic seconds.
        site_states: digest of the state whose part of the model is each site's own.
        sums: ask for the calibration's sums too; a site whose policy keeps them back counts for the quorum.
        parcel: what is first sent of ``tensors``; none: everything.
        asked: names of those to ask; none: everyone.
    """

    task: StageTask
    tensors: Tensors
    prior: Sequence[float]
    round_index: int
    deadline: float
    site_states: Mapping[str, str] = field(default_factory=dict)
    sums: bool = False
    parcel: Parcel | None = None
    asked: Set[str] | None = None


@dataclass(frozen=True)
class AssessRequest:
    """Metrics of a finished stage's model on the test images of every site whose policy lets them out.

    Attributes:
        task: the stage.
        tensors: the model, by the names that are exchanged.
        fitted: the stage's calibration.
        deadline: monotonic seconds.
        site_states: digest of the state whose part of the model is each site's own.
        asked: names of those to ask; none: everyone who is there.
        parcel: what is first sent of ``tensors``; none: everything.
        sureness: thresholds whose coverage is asked for too; none: there are none.
    """

    task: StageTask
    tensors: Tensors
    fitted: Calibration
    deadline: float
    site_states: Mapping[str, str] = field(default_factory=dict)
    asked: Set[str] | None = None
    parcel: Parcel | None = None
    sureness: Sureness | None = None


@dataclass(frozen=True)
class MetricsAnswer:
    """What came of an :class:`EvaluateRequest` or an :class:`AssessRequest`.

    Attributes:
        metrics: screened, by site in the order of names; a site may say nothing.
        outcome: of the exchange.
        summed: where nobody can see what one site says: what all of :attr:`among` together do, over all their images;
            empty: nothing. None: sites are seen one by one.
        among: names of the sites in it.
    """

    metrics: dict[str, dict[str, float]]
    outcome: Outcome
    summed: Mapping[str, float] | None = None
    among: tuple[str, ...] = ()


class Exchange(Protocol):
    """Whoever asks the sites, for the round loop.

    Attributes:
        members: the sites that are there, by name.
        heads: of the sites' chains, as each last said.
        hooks: what a real coordinator adds.
        withdrawn: names of the sites that left for good.
    """

    members: dict[str, Site]
    withdrawn: set[str]
    heads: dict[str, Head]
    hooks: Hooks

    def find(self, deadline: float) -> None:
        """Wait for the sites; raises :class:`fed_diffmic.errors.RoundError` where fewer than the quorum come."""

    def everyone(self) -> set[str]:
        """Names of all sites that are expected, or there."""

    def train(self, request: TrainRequest) -> TrainAnswer:
        """One local update at every site that takes part; raises ``RoundError`` where the quorum is missed."""

    def evaluate(self, request: EvaluateRequest) -> MetricsAnswer:
        """Metrics on the sites' validation images; raises ``RoundError`` where the quorum is missed."""

    @property
    def one_message(self) -> bool:
        """Whether :meth:`judge_and_train` can be asked."""

    def judge_and_train(self, judge: EvaluateRequest, request: TrainRequest) -> tuple[MetricsAnswer, TrainAnswer]:
        """What ``evaluate`` and then ``train`` answer, by one message to a site that is asked both."""

    def conform(self, request: AssessRequest) -> MetricsAnswer:
        """Counts of the sites' validation images, for prediction sets; a site that says nothing is left out."""

    def assess(self, request: AssessRequest) -> MetricsAnswer:
        """Metrics on the sites' test images; a site that says nothing is left out, whatever the quorum."""

    def hand_over(
        self, request: Callable[[Site, Mapping[str, Any]], Any], message_type: str, deadline: float, whom: Set[str]
    ) -> Outcome:
        """Ask each of ``whom`` that is there something about the whole run; nobody is waited for who is not."""

    def refused(self, site: str, code: str, stage: str = "", round_index: int = 0) -> None:
        """Say that a site is refused, and why (:data:`fed_diffmic.exchange.screening.REFUSALS`)."""

    def check_quorum(
        self, what: str, good: set[str], missing: Mapping[str, str], asked: Set[str] | None = None
    ) -> None:
        """Raise ``RoundError`` unless enough of those who were asked (none: everyone) replied well."""
