"""Which sites may be together in a sum: how many of all must sign its set, and that figures have one company in a run.

*How many sign.* Of the ``N`` sites of which a round's sum may be, at least ``q = floor(2 N / 3) + 1`` sign the set
before any site gives a share, however few of them were asked. Two sets that both have so many signatures have
``2 q - N`` signers in common at least (pigeonhole), which is more than a third of ``N``. So while no more than
``2 q - N - 1`` of the ``N`` sites are dishonest (:func:`fed_diffmic.exchange.masking.shamir.most_dishonest`), an honest
one is among them, and an honest site signs one set for a round, whatever the attempt: there is no second set, of no
group. Counted over the group alone, two groups with one site in common could each sign a set, and that site be in both
sums.

*One company.* What a model says of a site's validation images is the same whenever it is asked. The sum over {A, B, C,
D} less that over {A, B, C} would be D's own figures, exactly so at equal weights and nearly so a round later, and its
number of images always. So a site's figures go into sums over one set of sites in a run: the first one that it signs.

*Why no second one is formed when a site left.* Opened sums over sets ``S_1 .. S_m`` tell every combination of them, and
a site's rule on its company holds only if each combination in which it has a part has ``min_sites`` others in it. Of
two sets that is ``min(|A|, |B|, |A ^ B|) > min_sites`` (``^``: those who are in one alone; every other combination is
of all of ``A | B``). Without the site that left, ``B`` would therefore have to leave out ``min_sites`` others who are
there, and still be signed by ``q`` of ``N``: with the least ``min_sites`` (2) there is no such set below ten sites, and
of fewer than six there would be none if one signature were enough (``tests/exchange/masking/test_figure_sets.py``).
From ten on two sites would go unheard for each that left, rounds judged by other images could not be compared with
those before, and a site in the first set alone would lean on others' ``min_sites``. That is not worth it.

*Figures of another round are no other quantity.* Whoever asks chooses the weights, and may ask about the same ones
again: then the difference is exact. If it does not, it has ``n_D f_D + sum_B n_i (f_i(w) - f_i(w'))``: with ``d`` the
move of the others' mean from round to round and ``p = n_D / n_A``, ``f_D`` to within ``d (1 - p) / p``. Of four equal
sites whose mean AUROC moves by 0.002, that is 0.006: D's own figure for all purposes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.masking.session import FIGURES, SECOND_SET, MaskingError, Session
from fed_diffmic.exchange.masking.shamir import share_threshold
from fed_diffmic.exchange.masking.store import MaskingStore
from fed_diffmic.seeding import numpy_generator

_ALL_STAGES, _COMPANY = "", "company"


def signers(group: int, among: int) -> int:
    """How many sites of a set must have signed it before a share is given.

    Args:
        group: how many sites share the attempt's secrets.
        among: how many sites there are of which the round's sum may be.
    """
    return max(share_threshold(group), share_threshold(among))


def participants(spec: RunSpec, everyone: Iterable[str], stage: str, round_index: int) -> set[str] | None:
    """Who is drawn to train in a round (``strategy.participation``), the same wherever it is drawn; none: everyone.

    Args:
        everyone: names of all sites of the run.
    """
    share = spec.strategy.participation
    if share == 1.0:
        return None
    names = sorted(everyone)
    rng = numpy_generator(spec.seed, "participants", spec.arm, stage, round_index)
    count = max(1, round(share * len(names)))
    return {names[i] for i in rng.choice(len(names), count, replace=False)}


def check_company(store: MaskingStore, session: Session, summed: Collection[str]) -> None:
    """Whether a site's figures may go into a sum over these sites; of sums of updates nothing is asked.

    Raises:
        MaskingError: its figures go into sums over others in this run.
    """
    kept = store.load(_place(session)) if session.purpose in FIGURES else None
    if kept is not None and kept["summed"] != sorted(summed):
        raise MaskingError(SECOND_SET, "figures of this site go into sums over one set of sites in a run, and another")


def keep_company(store: MaskingStore, session: Session, summed: Collection[str]) -> None:
    """Remember over whom a site's figures go, before its signature of the set leaves."""
    if session.purpose in FIGURES and store.load(_place(session)) is None:
        store.save(_place(session), {"summed": sorted(summed)})


def _place(session: Session) -> tuple[str, str, str, str]:
    return session.run, session.arm, _ALL_STAGES, _COMPANY
