"""Images whose gradient looks like the one that was seen: gradient matching (Geiping et al. 2020).

The cosine between the gradient of guessed images and the one seen is driven up by signed Adam steps, with a penalty on
total variation, a learning rate that falls, and the guess kept within what pixels can be. The labels are given to the
attacker: reading them off a classifier's gradient is the easier part (Zhao et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fed_diffmic.deadline import check_time
from fed_diffmic.privacy.inversion.subject import Subject
from fed_diffmic.training.stage import Batch

_STEP = 0.1
_VARIATION = 1e-3
_FALLS = (3 / 8, 5 / 8, 7 / 8)


def match_gradients(
    subject: Subject, seen: Mapping[str, Tensor], labels: Tensor, *, steps: int, seed: int = 0
) -> tuple[Tensor, float]:
    """Guesses of as many images as there are labels.

    Args:
        seen: the gradient, by parameter.
        labels: ``(N,)``, given.
        steps: of the optimizer; each costs about four passes through the network.

    Returns:
        ``(N, 3, H, H)`` normalised, and the cosine that was reached.

    Raises:
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    module, spec = subject.module, subject.spec
    names = [name for name in seen if bool(seen[name].abs().sum() > 0)]
    parameters = [module.network.get_parameter(name) for name in names]
    wanted = [seen[name] for name in names]
    size = torch.stack([g.square().sum() for g in wanted]).sum().sqrt()
    low, high = (_bounds(spec.mean, spec.std, value) for value in (0.0, 1.0))
    generator = torch.Generator().manual_seed(seed)
    side = spec.model.image_side
    guess = torch.randn(len(labels), 3, side, side, generator=generator).clamp(low, high).requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=_STEP)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(steps * share) for share in _FALLS], gamma=0.1)
    module.train()
    reached = 0.0
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attentions have no second derivative
        for _ in range(steps):
            check_time()
            loss = module.losses(Batch(module.inputs(guess), labels), ()).mean()
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            product = torch.stack([(a * b).sum() for a, b in zip(gradients, wanted, strict=True)]).sum()
            norm = torch.stack([a.square().sum() for a in gradients]).sum().sqrt()
            cosine = product / (norm * size + 1e-20)
            optimizer.zero_grad()
            (1 - cosine + _VARIATION * variation(guess)).backward(inputs=[guess])
            if guess.grad is not None:
                guess.grad.sign_()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                guess.clamp_(low, high)
            reached = float(cosine.detach())
    module.zero_grad(set_to_none=True)
    return guess.detach(), reached


def variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return (images[..., 1:, :] - images[..., :-1, :]).abs().mean() + (images[..., 1:] - images[..., :-1]).abs().mean()


def _bounds(mean: tuple[float, ...], std: tuple[float, ...], value: float) -> Tensor:
    return ((value - torch.tensor(mean)) / torch.tensor(std)).view(1, 3, 1, 1)
