"""What sites say of weights on their images, under masks: the coordinator sees sums over all sites that say it.

Each is a masked sum of its own, with its own keys and its own set. It does not ride with the next round's training: a
site gives figures in sums over one set of sites in a run (:mod:`fed_diffmic.exchange.masking.company`), while an
update's set may lack whoever is away; one set for both would stop a round's training over its figures.

The first sum of a run chooses the company: every site that says figures and is there. From then on a round of which one
of them is away is not judged. No run ends by that: what nobody says is not known, as where sites keep it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import MessageType

from fed_diffmic.errors import ModelFileError, RoundError
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.figures import BITS, FRACTION, IMAGES, FigureForm, figure_form
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.masking.kept import FinishedSums, KeptSum, Where
from fed_diffmic.exchange.masking.requests import MASKED, NONE
from fed_diffmic.exchange.masking.session import FINISHED
from fed_diffmic.exchange.masking.shamir import share_threshold
from fed_diffmic.files import private_folder, read_json, write_json
from server.exchange import AssessRequest, EvaluateRequest, MetricsAnswer, Outcome, Parcel
from server.masked_steps import (
    TRAINING,
    MaskedSteps,
    SumOf,
    WordsForm,
    asked_words,
    replies_of,
)
from server.sites import ASSESS, CONFORM, Question

KINDS = {
    "evaluate": (MessageType.EVALUATE, "evaluate"),
    "calibrate": (MessageType.EVALUATE, "evaluate"),
    "conform": (CONFORM, "conform"),
    "test": (ASSESS, "assess"),
}
"""Flower's type and the kind of the request for a sum's words."""
FEWEST = 3
"""Sites in a sum: of two each would know the other's."""
_FOLDER, _COMPANY = "figures", "company.json"


@dataclass(frozen=True)
class Figures:
    """What a sum of figures is of, and how it is asked for.

    Attributes:
        about: the stage, its weights, the round and the purpose.
        form: of the words.
        asked: what the request for words says besides.
        site_states: digest of the state whose part of the model is each site's own.
        parcel: what is first sent of the weights; none: everything.
    """

    about: SumOf
    form: FigureForm
    asked: Mapping[str, Any]
    site_states: Mapping[str, str]
    parcel: Parcel | None

    @property
    def words(self) -> WordsForm:
        """How its words are written."""
        return WordsForm(self.form.digest, BITS, FRACTION, self.form.length)


class SummedFigures(MaskedSteps):
    """Sites of whose validation and test figures sums are asked for alone."""

    def __init__(self, *sites: Any, **more: Any) -> None:
        super().__init__(*sites, **more)
        self._silent: set[tuple[str, str, str]] = set()  # stage, purpose, and who said that it gives no figures
        self._missing: set[tuple[str, str, str]] = set()  # stage, purpose, and why there was no sum, as it was told

    def evaluate(self, request: EvaluateRequest) -> MetricsAnswer:
        """What all sites together say of some weights; nothing where there is no sum, and why is told as an event.

        Whom the request asks for does not matter: all that give figures are in every sum, or it is none.

        Raises:
            ModelFileError: what was kept of a frozen sum cannot be resumed.
        """
        purpose = "calibrate" if request.sums else "evaluate"
        about = SumOf(request.task, request.tensors, request.round_index, request.deadline, purpose)
        asked = {"prior": [float(p) for p in request.prior], "sums": request.sums, "split": "val"}
        form = figure_form(self.spec, request.task.stage, purpose, request.prior)
        return self._answer(Figures(about, form, asked, request.site_states, request.parcel))

    def conform(self, request: AssessRequest) -> MetricsAnswer:
        """What all sites together count of their validation images for prediction sets, once in a run; or nothing.

        It is over the sites of the run's other sums of figures.
        """
        return self._answer(self._finished(request, "conform"))

    def assess(self, request: AssessRequest) -> MetricsAnswer:
        """What all sites together say of a finished stage on their test images, once in a run; or nothing, as above.

        It is over the sites of the run's other sums of figures. Nobody is asked for coverage of prediction sets.
        """
        return self._answer(self._finished(request, "test"))

    def _finished(self, request: AssessRequest, purpose: str) -> Figures:
        about = SumOf(request.task, request.tensors, 0, request.deadline, purpose)
        asked = {"calibration": request.fitted.to_json()}
        form = figure_form(self.spec, request.task.stage, purpose, (), asked["calibration"])
        return Figures(about, form, asked, request.site_states, request.parcel)

    def _answer(self, figures: Figures) -> MetricsAnswer:
        """A sum of figures, or why there is none."""
        about, outcome = figures.about, Outcome()
        task, purpose = about.task, about.purpose
        try:
            summed, among = self._summed(figures, outcome)
        except (RoundError, FixedPointError) as error:
            place = {"arm": self.spec.arm, "stage": task.stage, "round": about.round_index}
            if (task.stage, purpose, error.cause) not in self._missing:  # for one reason once, not in every round
                todo = error.remedy if isinstance(error, RoundError) else ""
                self.events.emit("figures_missing", **place, purpose=purpose, reason=error.cause, todo=todo)
                self._missing.add((task.stage, purpose, error.cause))
            return MetricsAnswer({}, Outcome(bytes_sent=outcome.bytes_sent), {})
        # Who gives no figures, or was away, is not missing from the round: its update is in it.
        outcome.missing, outcome.codes = {}, {}
        return MetricsAnswer({}, outcome, summed, among)

    def _summed(self, figures: Figures, outcome: Outcome) -> tuple[dict[str, float], tuple[str, ...]]:
        """What the sum says, and who is in it; what travelled goes into ``outcome``."""
        about, folder = figures.about, self.folder / MASKED / _FOLDER
        where: Where = (self.spec.run_id, self.spec.arm, about.task.stage, about.purpose, about.round_index)
        kept, finished, asked = KeptSum(folder), FinishedSums(folder), self.session_of(about, 1, figures.words).task
        known = finished.get(where, asked)
        if known is not None:
            return known
        resumed = kept.resume(where, self.roster)
        if resumed is None:
            masked = self._words_of_figures(figures, kept, outcome)
            told = self.told_of(outcome)
            kept.freeze(masked, told)
            self._keep_company(masked.added)
        else:
            masked, told = resumed
            self._check_same(masked, figures)
            outcome.digests = self.recall(told)
            self._keep_company(masked.added)
        among = self.set_and_shares(about, masked, outcome)
        found = figures.form.decode(masked.unmask(), len(among))
        if found[IMAGES] > self._most(among, about.purpose):
            raise FixedPointError(
                "the sum is over more images than its sites said they have: one has others now, or lies"
            )
        if about.purpose in FINISHED:
            finished.add(where, asked, found, among)
        _, kind = KINDS[about.purpose]
        outcome.replies = replies_of(f"{kind}.reply", told, among)
        return found, among

    def _check_same(self, masked: MaskedSum, figures: Figures) -> None:
        """Raise RoundError where what was kept of a frozen sum is not what is asked about now."""
        if masked.session != self.session_of(figures.about, masked.session.attempt, figures.words):
            raise RoundError(
                "the sum of figures that was begun before the coordinator ended is of other weights, or of another "
                "calibration, than the run has now",
                "Sites agree to one sum, so there is no other. Resume with the program, and the run's folder, that it "
                "was begun with.",
            )

    def _words_of_figures(self, figures: Figures, kept: KeptSum, outcome: Outcome) -> MaskedSum:
        """The steps up to the masked words, added; nothing is frozen."""
        about, form = figures.about, figures.form
        message_type, kind = KINDS[about.purpose]
        self.refresh(about.deadline)
        company = self._company()
        able = (name for name in self.members if (about.task.stage, about.purpose, name) not in self._silent)
        invited = sorted(able) if company is None else list(company)
        # Of a company all must have given words; who is lost behind them is done without, as in every sum.
        least = max(FEWEST, share_threshold(len(self.everyone())))
        self._all_there(invited, least)
        where: Where = (self.spec.run_id, self.spec.arm, about.task.stage, about.purpose, about.round_index)
        session = self.session_of(about, kept.begin(where), figures.words)
        masked, lost = MaskedSum(session, self.roster, invited, least), Outcome()

        def says_nothing(name: str, answer: Mapping[str, Any]) -> bool:
            silent = dict(answer) == {NONE: True}
            self._silent |= {(about.task.stage, about.purpose, name)} if silent else set()
            return silent

        sealed = self.keys_and_shares(about, masked, invited, lost, says_nothing)
        self._whole(sealed, least)

        def header(site: str) -> dict[str, Any]:
            states = {"state": figures.site_states.get(site, ""), "guidance": about.task.guidance.get(site, "")}
            return {**states, **figures.asked, **asked_words(sealed, masked, site)}

        question = Question(
            message_type, about.task, about.tensors, about.round_index, about.until(TRAINING).deadline,
            header=header, metrics=lambda site: {}, schema={MASKED: (f"int{BITS}", (form.length,))},
            kind=kind, parcel=figures.parcel, asked=set(sealed), quorate=False,
        )  # fmt: skip
        came = self.masked_words(about, masked, question, lost)
        outcome.replies, outcome.digests, outcome.heads = came.replies, came.digests, came.heads
        outcome.bytes_sent += came.bytes_sent
        self._whole(masked.added, least)
        return masked

    def _whole(self, there: Iterable[str], least: int) -> None:
        """Raise RoundError where one of the run's company did not do a step."""
        done = tuple(sorted(there))
        if self._company() not in (None, done):
            self._all_there(done, least)

    def _all_there(self, there: Sequence[str], least: int) -> None:
        """Raise RoundError where sites are too few, or one of the run's company is away."""
        company = self._company() or ()
        away = sorted(set(company) - (set(there) & set(self.members)))
        if away:
            raise RoundError(
                f"figures of this run are sums over {', '.join(company)}, and not there: {', '.join(away)}",
                "Rounds are judged again when they are back. A site that is gone for good ends that for this run: its "
                "best judged round is kept, the last weights are written beside it (last/ in the run's folder), and "
                "another run over the sites that are left can begin from them (stages.*.init). What the sums of both "
                "runs tell of who is gone: docs/secure-aggregation.md.",
            )
        if len(there) < least:
            raise RoundError(
                f"{len(there)} sites give figures, and a sum is over {least} or more",
                "Ask the sites that require masks to let their figures into sums (`summed_metrics` in their policies).",
            )

    def _most(self, names: Sequence[str], purpose: str) -> float:
        """How many images sites can have that a sum is over, by what they said first, or by the roster."""
        roster = {} if self.hooks.most_images is None else self.hooks.most_images()
        claims = [(name, self.claims[name]["images"]) for name in names]
        if purpose == "test":  # of which a private site tells none
            return sum(images[2] or roster.get(name, math.inf) for name, images in claims)
        return float(sum(images[1] or images[0] for _, images in claims))  # kept back: no more than it trains on

    def _company(self) -> tuple[str, ...] | None:
        """Over whom this run's figures are; none: no sum was begun to be agreed to."""
        path = self.folder / MASKED / _FOLDER / _COMPANY
        if not path.exists():
            return None
        value = read_json(path)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ModelFileError(f"{path} does not name sites", "Restore it from the backup.")
        return tuple(value)

    def _keep_company(self, names: tuple[str, ...]) -> None:
        """Written down before a site is asked to agree: each agrees to one."""
        if self._company() is None:
            write_json(private_folder(self.folder / MASKED / _FOLDER) / _COMPANY, list(names), mode=0o600)
