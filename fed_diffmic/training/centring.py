"""The first round of a stage with ``model.features=centred``: no weight is trained, the mean of the features is found.

Each site sends the mean over its own training images, the server averages the means as it averages weights, and from
the second round on all sites train on the same centred features. A mean that is there already (``stages.*.init``)
stays, and the first round trains like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fed_diffmic.data.site import Examples
from fed_diffmic.training.features import CHUNK, chunks, normalised_images
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import centres, set_tensors, to_array


def seeks_centre(module: StageModule, round_index: int) -> bool:
    """Whether this round of the stage finds the mean of the features instead of training."""
    names = centres(module)
    state = module.network.state_dict() if round_index == 1 and names else {}
    return bool(state) and not any(bool(state[name].any()) for name in names)


@torch.no_grad()
def find_centre(
    module: StageModule,
    train: Examples,
    device: torch.device | str,
    features: Callable[[np.ndarray], object] | None = None,
) -> None:
    """Set the means to those of the images, unaugmented, ``n >= 1``.

    Args:
        features: inputs of a batch where they were computed once; none: they are computed here.

    Raises:
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    total: dict[str, torch.Tensor] = {}
    for index in chunks(len(train), CHUNK):
        inputs = module.inputs(normalised_images(module, train, index, device)) if features is None else features(index)
        for name, rows in module.to_centre(inputs).items():
            total[name] = total.get(name, 0.0) + rows.double().sum(dim=0)
    set_tensors(module.network, {name: to_array(value / len(train)) for name, value in total.items()})
