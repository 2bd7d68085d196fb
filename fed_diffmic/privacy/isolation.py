"""Do the weights that came let single images stand out in the update? Measured at the site before it trains.

Floors on counts do not stop weights that are made so that all images of a batch but one get no gradient (Wen et al.
2022, "fishing") or that each row of a layer sees one image (Boenisch et al. 2023, "trap weights"; Fowl et al. 2022,
"imprint"). Here some of the site's own images get their gradients one by one, at the weights that came, **with wrong
labels**: honest weights, however well they fit, then move every image alike, where with its own label an image that is
already learnt has next to no gradient and a hard one stands alone. For every tensor that is trained:

- *effective images*: ``(sum_i n_i)^2 / sum_i n_i^2`` for the norms ``n_i`` of the images' gradients in that tensor: all
  of them where they weigh alike, 1 where one image stands alone. The least over tensors counts.
- *own rows*: the share of the tensor's energy that lies in rows which one image has nearly to itself, or, of the steps
  from each row to the one that comes next in size, the share that is nearly one image's; where at least three images
  have such rows, for one odd image has them in honest networks too. The same of its columns, one for each input: a
  frozen part that sorts images leaves each image inputs of its own. The largest over tensors counts.
- *label*: the mean norm for the wrong label that moves the tensor least, over that for the one that moves it most: next
  to 0 where only images of one class are let through. The least over tensors counts.

And of the whole: *silent*, whether encoders are trained and no image moves any of them: the image that would is not
among those looked at.

Bounds were measured on honest networks (random, with published weights, and in training until all images were learnt)
and on made ones (docs/privacy.md). Whoever knows them can stay within: this finds what is known, and proves nothing.
In particular weights that fit all images of a site but one are honest weights too, and an update from them tells of
that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.training.stage import Batch, StageModule

MOST_IMAGES = 16
LEAST_ROWS = 8
LEAST_EFFECTIVE = 1.5
MOST_OWN_ROWS = 0.5
LEAST_OWNERS = 3
LEAST_LABEL = 1e-2
WRONG_LABELS = 2
_NEARLY = 0.9
_NOTHING = 1e-20  # of the largest: no gradient. Made weights may give tiny ones, which are sent and read all the same


@dataclass(frozen=True)
class Isolation:
    """What was measured.

    Attributes:
        images: whose gradients were looked at.
        effective, effective_at: least number of effective images over tensors, and the tensor's name.
        own_rows, own_rows_at: largest share of rows, or columns, with one image each, and the tensor's name.
        label, label_at: least ratio of labels' norms, and the tensor's name.
        silent: no image moves any tensor of the encoders, though they are trained.
    """

    images: int
    effective: float
    effective_at: str
    own_rows: float
    own_rows_at: str
    label: float
    label_at: str
    silent: bool

    @property
    def found(self) -> bool:
        """Whether single images stand out more than in any honest network that was measured."""
        few = self.effective < LEAST_EFFECTIVE or self.own_rows > MOST_OWN_ROWS
        return few or self.label < LEAST_LABEL or self.silent

    def __str__(self) -> str:
        return (
            f"of {self.images} images {self.effective:.2f} count in {self.effective_at} (at least {LEAST_EFFECTIVE}); "
            f"{self.own_rows:.2f} of {self.own_rows_at or 'any tensor'} is single images' (at most {MOST_OWN_ROWS}); "
            f"labels' norms differ by {self.label:.1e} in {self.label_at} (at least {LEAST_LABEL}); "
            f"the encoders are moved by {'none' if self.silent else 'some'}"
        )


def measure_isolation(
    module: StageModule, train: Examples, device: torch.device | str, rng: np.random.Generator
) -> Isolation:
    """Gradients of single images at the module's present weights; nothing of the module is changed.

    Batch normalisation uses the statistics of the images looked at, as in training, whatever the sent ones are.

    Args:
        train: of these, :data:`MOST_IMAGES` at random.
        rng: of the choice, which the coordinator must not know beforehand.

    Raises:
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    index = np.sort(rng.permutation(len(train))[:MOST_IMAGES])
    names = [name for name, p in module.network.named_parameters() if p.requires_grad]
    parameters = [module.network.get_parameter(name) for name in names]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    module.to(device)
    images = normalise(train.images(index).to(device), module.spec.mean, module.spec.std)
    norms: list[Tensor] = []
    given: list[int] = []
    rows = [torch.zeros(len(index), len(p) if p.ndim else 1, dtype=torch.float64) for p in parameters]
    columns = [torch.zeros(len(index), p.shape[1] if p.ndim > 1 else 0, dtype=torch.float64) for p in parameters]
    # The same timesteps and noise for every image: a row of a timestep table that one draw alone reaches would else be
    # one image's by the draw, whatever the weights are.
    draws = tuple(value.to(device) for value in module.draws(1, generator, torch.device("cpu")))
    with _batch_statistics(module, images):
        for i, label in enumerate(train.labels[index]):
            for number, wrong in wrong_labels(label, module.spec.num_classes):
                check_time()
                batch = Batch(module.inputs(images[i : i + 1]), wrong.to(device))
                found = torch.autograd.grad(module.losses(batch, draws).mean(), parameters, allow_unused=True)
                gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
                energies = [_rows(g) for g in gradients]
                for row, column, energy, gradient in zip(rows, columns, energies, gradients, strict=True):
                    row[i] += energy
                    if gradient.ndim > 1:
                        column[i] += _rows(gradient.transpose(0, 1))
                norms.append(torch.stack([energy.sum().sqrt() for energy in energies]))
                given.append(number)
    return _judged(names, torch.stack(norms), np.array(given), rows, columns)


def wrong_labels(label: np.ndarray, classes: int) -> list[tuple[int, Tensor]]:
    """Labels that an image does not have, ``(1,)`` or ``(1, C)`` each, with a number for each.

    Several labels an image: all of them turned around.
    """
    if np.ndim(label):
        return [(0, torch.from_numpy(1 - np.asarray(label))[None])]
    others = range(1, min(WRONG_LABELS, classes - 1) + 1)
    return [(n, torch.tensor([n])) for n in ((int(label) + step) % classes for step in others)]


def _rows(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.flatten(1).square().sum(dim=1) if value.ndim > 1 else value.square().flatten()).double().cpu()


def _judged(names: list[str], norms: Tensor, given: np.ndarray, rows: list[Tensor], columns: list[Tensor]) -> Isolation:
    """Args: norms ``(G, T)`` of each gradient in each tensor; the label ``(G,)`` each was of; energies."""
    total = torch.stack([energy.sum(dim=1) for energy in rows]).sum(dim=0)
    alive, largest = total > 0, float(norms.square().sum(dim=1).max().sqrt())
    effective, own, label = (float(len(total)), ""), (0.0, ""), (1.0, "")
    moved: set[str] = set()
    for place, name in enumerate(names):
        if not bool(norms[:, place].max() > _NOTHING * largest):
            continue
        moved.add(name)
        size = rows[place].sum(dim=1).sqrt()
        effective = min(effective, (float(size.sum() ** 2 / size.square().sum()), name))
        strength = [float(norms[torch.from_numpy(given == n), place].mean()) for n in np.unique(given)]
        label = min(label, (min(strength) / max(strength), name))
        for energy in (rows[place], columns[place]):
            if columns[place].shape[1] and energy.shape[1] >= LEAST_ROWS:
                own = max(own, (own_rows(energy[alive] / total[alive].unsqueeze(1)), name))
    encoders = {name for name in names if "encoder" in name}
    return Isolation(len(total), *effective, *own, *label, bool(encoders) and not encoders & moved)


def own_rows(energy: Tensor) -> float:
    """How much of the energy ``(n, R)`` of n images in R rows lets several images be told apart, 0 to 1.

    The larger of two shares: of the energy, what lies in rows that one image has nearly to itself; and of the steps
    from each row to the next larger one, what is nearly one image's doing. Either counts only where at least
    :data:`LEAST_OWNERS` images have such rows: in honest networks one odd image now and then has a row of its own.
    """
    whole = energy.sum(dim=0)
    if len(energy) < 2 or not bool(whole.sum() > 0):
        return 0.0
    steps = energy.sqrt()[:, whole.argsort()].diff(dim=1).square()
    return max(_single(energy), _single(steps))


def _single(energy: Tensor) -> float:
    """The share in columns that are nearly one image's, 0 where they are those of few images."""
    size = energy.sum(dim=0)
    most, owner = energy.max(dim=0)
    mine = most > _NEARLY * size
    if not bool(mine.any()) or not bool(size.sum() > 0):
        return 0.0
    owned = torch.zeros(len(energy), dtype=energy.dtype).index_add_(0, owner[mine], size[mine])
    owners = float(owned.sum() ** 2 / owned.square().sum())
    return float(owned.sum() / size.sum()) if owners >= min(LEAST_OWNERS, len(energy)) else 0.0


@contextmanager
def _batch_statistics(module: StageModule, images: Tensor) -> Iterator[None]:
    """Evaluation mode with the images' own statistics in live batch norms; everything is as before afterwards."""
    was_training = module.training
    module.train()
    live = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [({n: b.clone() for n, b in layer.named_buffers(recurse=False)}, layer.momentum) for layer in live]
    try:
        if live:
            for layer in live:
                layer.momentum = 1.0
            with torch.no_grad():
                module.inputs(images) if module.features_once else module.network(images)
        module.eval()
        yield
    finally:
        for layer, (buffers, momentum) in zip(live, before, strict=True):
            layer.momentum = momentum
            with torch.no_grad():
                for name, value in buffers.items():
                    layer.get_buffer(name).copy_(value)
        module.train(was_training)
        module.zero_grad(set_to_none=True)
