"""On which images an update will rest, known before it is computed: the order of a round's batches is a seed's."""

from __future__ import annotations

import numpy as np

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.exchange.floors import Exposure
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training.local import batches


def planned_exposure(
    spec: RunSpec, stage: str, train: Examples, *, site: str, round_index: int, pace: float = 1.0
) -> Exposure:
    """The exposure of :func:`fed_diffmic.training.local.local_update` with these arguments.

    A centring round sends a mean over all images, which rests on more than the steps that it leaves out.
    """
    cfg = spec.stage(stage)
    steps = max(1, round(pace * cfg.local_steps(len(train))))
    order = numpy_generator(spec.seed, "order", stage, site, round_index)
    counts = np.zeros(len(train), dtype=np.int64)
    _, of_group = np.unique(train.groups, return_inverse=True)
    fewest_images = fewest_patients = len(train)
    for _, index in zip(range(steps), batches(len(train), cfg.batch_size, order), strict=False):
        counts[index] += 1
        fewest_images = min(fewest_images, len(index))
        fewest_patients = min(fewest_patients, len(np.unique(of_group[index])))
    used = counts > 0
    return Exposure(counts, steps, fewest_images, fewest_patients, int(used.sum()), len(np.unique(of_group[used])))
