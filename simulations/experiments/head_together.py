"""A stage trained by several sites in rounds, for an experiment about the head: what a coordinator does, and no more.

Every round each site trains from the global weights on its own images (:func:`fed_diffmic.training.local.local_update`)
and the strategy makes the next ones of the sums of what they changed (:mod:`server.fold`), as in a run; all sites are
there in every round, and the last weights are taken instead of those of the best round, so that nothing is chosen on
the way. A test holds it to a run through messages, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fed_diffmic.algorithms import Algorithm, SiteUpdate, Tensors, algorithm_class, build_algorithm
from fed_diffmic.algorithms.base import SUMS
from fed_diffmic.config.simulation import ConditionsConfig, SimulateConfig, StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import ConfigError
from fed_diffmic.training.guided import GuidanceTable, GuidedStage
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stages import build_module, exchanged, initial_state, load_state
from fed_diffmic.training.update import LocalResult, LocalRound, SiteMemory
from server.fold import folded

_ASKED = ("participation", "client_noise_multiplier", "codec", "secure_aggregation", "personal")
"""Of the strategy: what rounds without messages, and with every site, leave out."""


def check_together(config: SimulateConfig) -> None:
    """Refuse what would be left out without a word.

    Raises:
        ConfigError: the strategy does not make one model of the sites' sums, or asks for what is not done here.
    """
    strategy = config.strategy
    made = algorithm_class(strategy.name)
    if strategy.name == "flower" or made.needs != SUMS or made.gradient_sums or not made.global_is_trained:
        raise ConfigError(
            "strategy.name",
            strategy.name,
            "one that makes a global model of sums over the sites, such as fedavg, with --federated",
        )
    for name in _ASKED:
        usual = getattr(StrategyConfig(), name)
        if getattr(strategy, name) != usual:
            raise ConfigError(f"strategy.{name}", getattr(strategy, name), f"with --federated {usual}")
    for stage in trained_stages(config.stages):
        if ema := getattr(config.stages, stage).ema:
            raise ConfigError(f"stages.{stage}.ema", ema, "0 with --federated, which judges the last weights")
    usual = ConditionsConfig()
    for name in ("dropout", "absent", "slow"):
        if getattr(config.conditions, name) != getattr(usual, name):
            raise ConfigError(
                f"conditions.{name}",
                getattr(config.conditions, name),
                f"with --federated {getattr(usual, name)}: every site is there in every round",
            )


def trained_together(
    spec: RunSpec,
    stage: str,
    sites: Mapping[str, Examples],
    guidance: Tensors | None = None,
    table: GuidanceTable | None = None,
) -> Tensors:
    """All rounds of a stage; the full state with the last weights.

    Args:
        spec: with a strategy that :func:`check_together` lets pass.
        stage: guidance or diffusion.
        sites: training images by site.
        guidance: the guidance network's state, behind which a stage is trained.
        table: what guidance networks say of the training images of all sites; none: the stage's own says it.

    Raises:
        RoundError: the updates are not what the strategy needs.
        ValueError: a site's training diverged.
    """
    module = build_module(spec, stage)
    if isinstance(module, GuidedStage):
        module.table = table
    state, kinds = initial_state(spec, stage, guidance), exchanged(module)
    algorithm = build_algorithm(spec.strategy, spec.stage(stage))
    current = {name: state[name] for name in kinds}
    server_state, kept = algorithm.initial_state(current, kinds), dict.fromkeys(sites, SiteMemory())
    for number in range(1, (spec.stage(stage).rounds or 0) + 1):
        sent, updates = algorithm.broadcast(current, server_state), []
        for name, train in sites.items():
            load_state(module.network, {**state, **current}, f"stage {stage}")
            at, memory = LocalRound(name, number, spec.device), replace(kept[name], received=sent)
            result = local_update(module, train, build_algorithm(spec.strategy, spec.stage(stage)), at, memory)
            kept[name] = SiteMemory(optimizer=result.optimizer_state or {}, algorithm=result.algorithm_state)
            updates.append(_update(name, result))
        current, server_state = _next(algorithm, current, kinds, updates, server_state, number)
    return {**state, **current}


def _update(site: str, result: LocalResult) -> SiteUpdate:
    return SiteUpdate(
        site=site,
        tensors=result.tensors,
        num_examples=result.num_examples,
        algorithm_tensors=result.algorithm_tensors,
        steps=result.metrics.get("steps"),
        initial_loss=result.metrics.get("initial_loss"),
    )


def _next(
    algorithm: Algorithm,
    current: Tensors,
    kinds: Mapping[str, str],
    updates: list[SiteUpdate],
    server_state: Tensors,
    number: int,
) -> tuple[Tensors, Tensors]:
    before = {**current, **algorithm.broadcast(current, server_state)}
    sums = folded(algorithm, before, kinds, updates, heaviest=0.0)
    return algorithm.from_sums(current, kinds, sums, server_state, number, len(updates))
