"""Are the weights that the encoders start from there, and of these networks? Asked before anything is begun."""

from __future__ import annotations

from collections.abc import Iterable

from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.spec import make_spec
from fed_diffmic.models.weights import check_pretrained
from fed_diffmic.models.without_compiler import shapes_only
from fed_diffmic.training.stages import build_module


def check_starting_weights(config: SimulateConfig, stages: Iterable[str]) -> None:
    """Read the weights that the encoders start from, where the settings name some, and hold them to each network.

    Args:
        config: of the run.
        stages: those that it trains; one that starts from a file of its own (``stages.*.init``) needs no others.

    Raises:
        ConfigError: the settings describe no possible network.
        ModelFileError: a file cannot be read or fits none of a network's encoders, or published weights cannot be had.
    """
    model = config.model
    if not model.pretrained and model.weights is None and model.prior_weights is None:
        return
    # An encoder is the same for any classes and any task, which are not known before the data are read.
    spec = make_spec(
        config, classes=("one", "other"), task="multiclass", run_id="weights", arm="federated", device="cpu"
    )
    with shapes_only():
        modules = [build_module(spec, name).network for name in stages if spec.stage(name).init is None]
    check_pretrained(modules, model)
