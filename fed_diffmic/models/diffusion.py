"""Noise schedule, heterologous forward process, hard-example loss and DDIM steps.

Forward process and loss: the paper's sections on heterologous diffusion and on the objective
(design sections 4 and 6). Sampling: DDIM (Song et al. 2021) with eta 0 and leading spacing.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BETA_START = 1e-4
BETA_END = 0.02
LEAST_VARIANCE = 0.01


def alphas_cumprod(timesteps: int, device: str | None = None) -> Tensor:
    """Cumulative products ``abar (T,)`` of ``1 - beta``, betas linear from 1e-4 to 0.02."""
    betas = torch.linspace(BETA_START, BETA_END, timesteps, dtype=torch.float64, device=device)
    return torch.cumprod(1 - betas, dim=0).float()


def forward_diffusion(y0: Tensor, t: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Noisy label map ``y_t (B, C, K, K)``: each cell at its own timestep.

    Args:
        y0: one-hot or multi-hot labels, ``(B, C)``.
        t: timesteps, ``(B, K, K)`` int64 in ``0 .. T - 1``.
        noise: ``(B, C, K, K)``.
        abar: ``(T,)`` from :func:`alphas_cumprod`.
    """
    signal = abar[t].unsqueeze(1)  # (B, 1, K, K)
    return signal.sqrt() * y0[:, :, None, None] + (1 - signal).sqrt() * noise


def residual_base(y_t: Tensor, guess: Tensor, abar_t: Tensor) -> tuple[Tensor, Tensor]:
    """What a guess of the label says of the noise, and how much it leaves open; elementwise.

    If ``y_0`` has mean ``g`` and variance ``v = g (1 - g)``, as a label of probability ``g`` has, the best linear
    estimate of the noise ``n`` in ``y_t = sqrt(abar) y_0 + sqrt(1 - abar) n`` is
    ``sqrt(1 - abar) (y_t - sqrt(abar) g) / (abar v + 1 - abar)``, and ``sqrt(abar v / (abar v + 1 - abar))`` is the
    standard deviation of what it misses. A network that predicts the miss in units of that deviation has a target of
    variance one at every timestep, and one that predicts 0 is as good as the guess: the preconditioning of Karras et
    al. (2022, "Elucidating the Design Space of Diffusion-Based Generative Models", section 5) about a mean that is
    not 0.

    Args:
        y_t: noisy labels.
        guess: probabilities ``g``, same shape; a variance is taken no smaller than 0.01, for a guess may be wrong.
        abar_t: ``abar`` at the timestep, broadcastable.

    Returns:
        the estimate, and the standard deviation, of the shape of ``y_t``.
    """
    variance = (guess * (1 - guess)).clamp_min(LEAST_VARIANCE)
    whole = abar_t * variance + 1 - abar_t
    base = (1 - abar_t).sqrt() * (y_t - abar_t.sqrt() * guess) / whole
    return base, (abar_t * variance / whole).sqrt()


def true_class_probability(prior_logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Probability ``p_b (B,)`` that the frozen guidance gives the truth.

    Args:
        prior_logits: fused logits of the guidance, ``(B, C)``.
        labels: class index ``(B,)``, or one-hot ``(B, C)``; multi-hot ``(B, C)`` for ``multilabel``.
        task: ``multiclass``, ``ordinal`` (softmax of the true class) or ``multilabel`` (mean over
            labels of ``sigmoid(z)`` where the label is 1 and ``1 - sigmoid(z)`` where it is 0).
    """
    logits = prior_logits.float()
    if task == "multilabel":
        probability = torch.sigmoid(logits)
        return torch.where(labels > 0.5, probability, 1 - probability).mean(dim=1)
    probabilities = torch.softmax(logits, dim=1)
    if labels.dim() == 1:
        return probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (probabilities * labels).sum(dim=1)


def diffusion_loss(
    noise_pred: Tensor,
    noise: Tensor,
    labels: Tensor,
    prior_logits: Tensor,
    alpha: float,
    gamma: float,
    task: str,
    image_weight: Tensor | None = None,
) -> Tensor:
    """Mean over all cells of ``w_b * (noise_pred - noise)^2``, ``w_b = 1 + alpha * (1 - p_b)^gamma``.

    Args:
        noise_pred: ``(B, C, K, K)``.
        noise: ``(B, C, K, K)``.
        labels: see :func:`true_class_probability`.
        prior_logits: fused logits of the frozen guidance, ``(B, C)``; no gradient flows into them.
        alpha: weight of hard images (paper 10).
        gamma: exponent of hard images (paper 1).
        task: ``multiclass``, ``ordinal`` or ``multilabel``.
        image_weight: a further weight of each image, ``(B,)``; none in the paper.

    Returns:
        a scalar in float32.
    """
    return weighted_squares(noise_pred, noise, labels, prior_logits, alpha, gamma, task, image_weight).mean()


def weighted_squares(
    noise_pred: Tensor,
    noise: Tensor,
    labels: Tensor,
    prior_logits: Tensor,
    alpha: float,
    gamma: float,
    task: str,
    image_weight: Tensor | None = None,
) -> Tensor:
    """What :func:`diffusion_loss` is the mean of, ``(B, C, K, K)`` float32; arguments as there."""
    p = true_class_probability(prior_logits.detach(), labels, task)
    weight = 1 + alpha * (1 - p).clamp_min(0) ** gamma
    if image_weight is not None:
        weight = weight * image_weight
    squared = (noise_pred.float() - noise.float()).square()
    return weight[:, None, None, None] * squared


def ddim_timesteps(timesteps: int, steps: int) -> list[int]:
    """The ``S`` of ``T`` timesteps that sampling visits, leading spacing: 900, 800, ..., 0 for 10 of 1000.

    Raises:
        ValueError: more steps than timesteps, or none.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"{steps} sampling steps of {timesteps} timesteps")
    stride = timesteps // steps
    return [i * stride for i in reversed(range(steps))]


def ddim_step(y_t: Tensor, noise: Tensor, alpha_t: float, alpha_previous: float) -> Tensor:
    """One DDIM step (eta 0), elementwise.

    ``x_0`` is clipped to [-1, 1]; the predicted noise is then used as it is, not recomputed from
    the clipped ``x_0``.

    Args:
        y_t: any shape.
        noise: predicted noise, same shape.
        alpha_t: ``abar`` at this step.
        alpha_previous: ``abar`` at the next step visited; 1 after the last.
    """
    x0 = ((y_t - (1 - alpha_t) ** 0.5 * noise) / alpha_t**0.5).clamp(-1, 1)
    return alpha_previous**0.5 * x0 + (1 - alpha_previous) ** 0.5 * noise


@functools.lru_cache(maxsize=16)
def ddim_schedule(timesteps: int, steps: int) -> tuple[tuple[int, float, float], ...]:
    """For each step of sampling: timestep, ``abar`` there and ``abar`` one stride earlier (1 after the last)."""
    abar = alphas_cumprod(timesteps, device="cpu").tolist()
    stride = timesteps // steps
    return tuple((t, abar[t], abar[t - stride] if t >= stride else 1.0) for t in ddim_timesteps(timesteps, steps))
