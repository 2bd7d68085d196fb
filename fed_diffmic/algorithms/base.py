"""The contract of a federated algorithm, and the averaging that most of them share.

An algorithm has two halves in one class. The **site half** (:class:`SiteHalf`) lives for one local
update: it may add a term to the loss, correct gradients, keep state at the site and train a model
of the site's own. The **server half** (:meth:`Algorithm.aggregate`) turns the sites' screened
updates into the next global weights. What crosses between them each round is the set of tensors
that the stage exchanges, less those that the algorithm keeps at the site (:meth:`Algorithm.kept`),
and tensors of the algorithm's own (:meth:`Algorithm.broadcast`), which a site sends back changed
under the same names: schema, policy and the bound on an update's size hold for them as for weights.
Both halves are deterministic: sums of a run do not depend on the order in which updates come (:mod:`server.fold`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fed_diffmic.algorithms.shares import capped
from fed_diffmic.algorithms.sums import Sums, plain_sums, with_means
from fed_diffmic.algorithms.updates import (
    EXTRA,
    SiteUpdate,
    Tensors,
    mean_change,
    parameters_of,
    stated,
    weighted_average,
    with_rest,
)
from fed_diffmic.config.owners import ALGORITHMS, Own, builtins, register
from fed_diffmic.config.plugins import find
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "EXTRA",
    "SUMS",
    "UPDATES",
    "Algorithm",
    "LocalContext",
    "SiteHalf",
    "SiteUpdate",
    "Sums",
    "Tensors",
    "algorithm_class",
    "algorithm_names",
    "build_algorithm",
    "mean_change",
    "parameters_of",
    "register_algorithm",
    "stated",
    "weighted_average",
    "with_means",
    "with_rest",
]

SUMS, UPDATES = "sums", "updates"
"""What a server half takes (:attr:`Algorithm.needs`)."""


@dataclass(frozen=True)
class LocalContext:
    """What a site half is made from.

    Attributes:
        network: being trained; holds the round's global weights.
        reference: the round's global values of its trainable parameters, by name; never changed.
        names: tensors that the stage would exchange, with their kind (:func:`fed_diffmic.training.stages.exchanged`).
        received: the algorithm's own tensors of this round, by name.
        site_state: what this site's half kept after the previous round; empty at first.
    """

    network: nn.Module
    reference: Mapping[str, torch.Tensor]
    names: Mapping[str, str] = field(default_factory=dict)
    received: Tensors = field(default_factory=dict)
    site_state: Tensors = field(default_factory=dict)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Trainable parameters by name, in the network's order."""
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    def tensors(self, source: Tensors, prefix: str) -> dict[str, torch.Tensor]:
        """For each trainable parameter its tensor in ``source`` (``<prefix><name>``), zero where there is none."""
        import torch

        return {
            name: torch.from_numpy(source[prefix + name].copy()).to(p)
            if prefix + name in source
            else torch.zeros_like(p)
            for name, p in self.trained()
        }


class SiteHalf:
    """What an algorithm does at a site during one local update; this one does nothing."""

    #: whether a model of the site's own is trained after the update (:meth:`personal_start`)
    personal = False

    def penalty(self) -> torch.Tensor | None:
        """A term added to every step's loss, or none."""
        return None

    def correct(self) -> None:
        """Change the step's gradients in place, after the backward pass and before they are clipped."""

    def finish(self) -> tuple[Tensors, Tensors]:
        """The algorithm's tensors for the server (by the names that were received), and the state to keep here."""
        return {}, {}

    def personal_start(self) -> Tensors:
        """The site's own model before this round, by the names of exchanged tensors (``personal`` only)."""
        raise NotImplementedError

    def personal_penalty(self) -> torch.Tensor | None:
        """A term added to every step's loss of the site's own model."""
        return None

    def keep_personal(self, tensors: Tensors) -> None:
        """Take the site's own model after its training."""


class Algorithm:
    """Base class: subclass and override one half or both; registered by name, with its own options.

    ``self.options`` are those of the run, of the class that :func:`register_algorithm` was given.

    Args:
        config: the run's ``strategy`` group.
        stage: of the stage that is trained; none: the algorithm does not look at it.
        max_share: the largest share of one site in any sum that the server half takes over the sites.
    """

    #: own options (:func:`register_algorithm`)
    options_type: type[Own] = Own
    #: the site half sees weights and (noised) gradients only: differential privacy of the steps covers all that it does
    private = True
    #: what a site evaluates depends on state that it keeps (:meth:`overlay`)
    personal = False
    #: the global model alone is one that was trained, whatever the sites keep of their own
    global_is_trained = True
    #: the server half needs :attr:`SiteUpdate.steps`, no more than a site of that many images has
    needs_steps = False
    #: a site's change of the parameters counts over how far its steps moved it (:meth:`moves`); under masks the site
    #: divides it itself
    divides = False
    #: the server half needs :attr:`SiteUpdate.initial_loss`
    needs_initial_loss = False
    #: what the server half takes: :data:`SUMS`, weighted sums over the sites and nothing of a single one, or
    #: :data:`UPDATES`, each by itself; a class with an :meth:`aggregate` of its own takes updates unless it says so
    needs = UPDATES
    #: the sites send noised sums of gradients, which are added up, and the server makes the step (``fedsgd``)
    gradient_sums = False
    #: nothing is asked of the sites but updates, of which the server takes an average (client-level privacy noises it)
    mean_of_updates = False

    options: Any

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if {"aggregate", "site_weights"} & set(vars(cls)) and "needs" not in vars(cls):
            cls.needs = UPDATES  # whatever it derives from: sums would pass its own half by

    def __init__(self, config: StrategyConfig, stage: StageConfig | None = None, max_share: float = 1.0) -> None:
        self.config = config
        self.options = self.options_type.of(config)
        self.stage = stage or StageConfig()
        self.max_share = max_share

    # ---- site half -------------------------------------------------------------------------
    def site_half(self, context: LocalContext) -> SiteHalf:
        """The half of one local update."""
        return SiteHalf()

    def kept(self, network: nn.Module, names: Mapping[str, str]) -> frozenset[str]:
        """Those of ``names`` (what the stage would exchange) that never leave the site."""
        return frozenset()

    def overlay(self, site_state: Tensors, *, training: bool) -> Tensors:
        """What of a site's state replaces the global values before training, or before an evaluation."""
        return {}

    # ---- server half -----------------------------------------------------------------------
    def initial_state(self, weights: Tensors, kinds: Mapping[str, str]) -> Tensors:
        """State the server keeps from round to round (saved in each checkpoint), before the first."""
        return {}

    def broadcast(self, current: Tensors, server_state: Tensors) -> Tensors:
        """The algorithm's own tensors that go to every site with the weights; names begin with :data:`EXTRA`."""
        return {}

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The next global tensors and the next state, of updates that are seen one by one.

        Args:
            current: the round's global tensors.
            kinds: ``parameter``, ``buffer`` or ``counter`` for each name.
            updates: screened, in any order; at least one.
            server_state: what the previous round returned.
            round_index: from 1.
            sites: how many there are in the run, those that took no part in this round included; none: as many as
                there are updates.

        Raises:
            RoundError: the updates are not what the algorithm needs.
        """
        weights = self.site_weights(updates)
        before = {**current, **self.broadcast(current, server_state)}
        sums = plain_sums(before, kinds, updates, weights, self.rates(updates, weights))
        return self.from_sums(current, kinds, sums, server_state, round_index, sites)

    def from_sums(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        sums: Sums,
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """As :meth:`aggregate`, of sums over the sites alone (``needs = "sums"``).

        Raises:
            RoundError: what the sites said is not what the algorithm needs.
        """
        return {name: sums.mean(name) for name in kinds}, server_state

    def raw_weights(self, updates: Sequence[SiteUpdate]) -> dict[str, float]:
        """How much each site counts: its images, or 1 (``strategy.weighting``), at most ``max_share`` of their sum.

        Tensors are not looked at, so updates without any do.
        """
        said = {u.site: float(u.num_examples) if self.config.weighting == "examples" else 1.0 for u in updates}
        return capped(said, self.max_share)

    def rates(self, updates: Sequence[SiteUpdate], weights: Mapping[str, float]) -> dict[str, float]:
        """What each site's change of the parameters counts, where that is not its weight; in the scale of ``weights``.

        Tensors are not looked at.
        """
        return dict(weights)

    def moves(self, steps: float) -> float:
        """``a_k``, at least 1: how far so many local steps move, in units of one (:attr:`divides` only)."""
        return 1.0

    def site_weights(self, updates: Sequence[SiteUpdate]) -> dict[str, float]:
        """Normalised weight of each site, at most ``max_share``: its images, or equal (``strategy.weighting``)."""
        raw = self.raw_weights(updates)
        total = sum(raw[site] for site in sorted(raw))
        return {site: value / total for site, value in raw.items()}


def register_algorithm(
    name: str, options: type[Own] | None = None, **preset: Any
) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Class decorator: enter an algorithm, with its own options, under ``strategy.name``.

    Args:
        name: of the file too, for one that is built in.
        options: declared beside the class; none: those of the class that it derives from.
        preset: settings of the group ``strategy``, not its own, that choosing it sets.

    Raises:
        ValueError: the name is taken, or built in.
    """

    def decorate(cls: type[Algorithm]) -> type[Algorithm]:
        if options is not None:
            cls.options_type = options
        if not cls.__module__.startswith(f"{ALGORITHMS.package}.") and "private" not in vars(cls):
            cls.private = False  # what nobody vouched for is not covered by the noise of a private site
        register(ALGORITHMS, name, cls.options_type, cls, **preset)
        return cls

    return decorate


def algorithm_names() -> list[str]:
    """Names of the built-in algorithms, sorted; ``flower``, which the coordinator builds, is not among them."""
    return [name for name, owner in builtins(ALGORITHMS).items() if owner.made is not None]


def algorithm_class(name: str) -> type[Algorithm]:
    """The class of that name; :class:`Algorithm` itself, with its idle site half, for what only a server knows.

    Raises:
        ConfigError: no such algorithm here.
    """
    made: type[Algorithm] | None = find(ALGORITHMS, name).made
    return made or Algorithm


def build_algorithm(config: StrategyConfig, stage: StageConfig | None = None, max_share: float = 1.0) -> Algorithm:
    """The algorithm that ``strategy.name`` names, for one stage; no site has more than ``max_share`` in its sums.

    Raises:
        ConfigError: no such algorithm here (``flower`` is built by the coordinator's room), or its options are not
            those of its package here.
    """
    owner = find(ALGORITHMS, config.name)
    if owner.made is None:
        raise ConfigError("strategy.name", config.name, ", ".join(algorithm_names()))
    algorithm: Algorithm = owner.made(config, stage, max_share)
    return algorithm
