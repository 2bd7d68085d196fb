"""Networks that may be trained with privacy: nothing in them mixes units or remembers them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fed_diffmic.errors import ConfigError
from fed_diffmic.models.normalisation import live_batch_norms
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import centres

REMEDY = (
    "Set model.norm=group, and model.encoder_norm=frozen (batch norm at its public statistics; needs published "
    "weights) or group."
)


def check_private(module: StageModule, exchanged: Mapping[str, str]) -> None:
    """Refuse what per-unit clipping cannot protect.

    Args:
        module: of the stage, as it would be trained.
        exchanged: kind of every tensor that would leave (``fed_diffmic.training.stages.exchanged``).

    Raises:
        ConfigError: a batch norm that would mix the units of a batch (timm's subclasses too), a running statistic or
            a counter that would leave (means of features leave with noise), drop-out or drop-path (random without being
            an argument), or nothing to train.
    """
    was_training = module.training
    module.train()
    live = live_batch_norms(module.network)
    module.train(was_training)
    if live:
        raise ConfigError(
            "privacy.name",
            "dp_sgd",
            f"networks without live batch norm; stage {module.stage} has {len(live)}, the first is {live[0]}",
            REMEDY,
        )
    kept = sorted(name for name, kind in exchanged.items() if kind != "parameter" and name not in centres(module))
    if kept:
        raise ConfigError("privacy.name", "dp_sgd", f"trained parameters alone to leave, not {kept[0]}", REMEDY)
    random = [name for name, layer in module.network.named_modules() if _drops(layer)]
    if random:
        raise ConfigError("privacy.name", "dp_sgd", f"networks without drop-out or drop-path; {random[0]} is one")
    if not exchanged:
        raise ConfigError("privacy.name", "dp_sgd", f"a stage that trains something; {module.stage} trains nothing")


def _drops(layer: nn.Module) -> bool:
    rate = getattr(layer, "drop_prob", None) if type(layer).__name__ == "DropPath" else getattr(layer, "p", None)
    if type(layer).__name__ != "DropPath" and not isinstance(layer, nn.modules.dropout._DropoutNd):
        return False
    return bool(rate)
