"""Classification losses of the guidance network and of the plain classifier."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def label_prior(labels: np.ndarray, num_classes: int, task: str) -> np.ndarray:
    """Laplace-smoothed class frequencies of a set of labels, ``(C,)`` float64.

    Args:
        labels: ``(N,)`` class indices, or ``(N, C)`` of 0/1 for ``multilabel``.
    """
    if task == "multilabel":
        return np.asarray((labels.sum(axis=0) + 1.0) / (len(labels) + 2.0))
    counts = np.bincount(labels.astype(np.int64), minlength=num_classes)
    return np.asarray((counts + 1.0) / (len(labels) + num_classes))


def prior_offset(prior: np.ndarray, task: str) -> torch.Tensor:
    """What the balanced loss adds to the logits: ``log pi``, or the log-odds for multi-label."""
    values = torch.from_numpy(np.asarray(prior, dtype=np.float64))
    return (torch.logit(values) if task == "multilabel" else values.log()).float()


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, task: str, offset: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the images of :func:`classification_losses` (scalar)."""
    return classification_losses(logits, labels, task, offset).mean()


def classification_losses(
    logits: torch.Tensor, labels: torch.Tensor, task: str, offset: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each image ``(B,)``, or mean over the labels of the binary one for multi-label.

    With ``offset`` (the site's own :func:`prior_offset`) this is the balanced softmax (Ren et al.
    2020, eq. 5) or logit-adjusted loss (Menon et al. 2021, eq. 10): the network then learns scores
    free of the site's label prior, which is what sites with unlike class mixes have in common.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` int64, or ``(B, C)`` float for multi-label.
        offset: ``(C,)`` or none.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if offset is not None:
        logits = logits + offset
    if task == "multilabel":
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    return functional.cross_entropy(logits, labels, reduction="none")


def balancing_weights(labels: torch.Tensor, offset: torch.Tensor, task: str, power: float) -> torch.Tensor:
    """Weight of each image ``(B,)`` in the diffusion stage's balanced loss: ``pi_y^-power``, mean 1 over the site.

    ``power`` 0 is the site's own label prior, 1 equal classes. Multi-label: the largest ``(pi^-1 - 1)^power`` among
    an image's labels, at least 1.

    Args:
        labels: ``(B,)`` int64, or ``(B, C)`` of 0/1 for multi-label.
        offset: :func:`prior_offset` of the site, ``(C,)``.
        power: in [0, 1] (``stages.diffusion.balance``).
    """
    if task == "multilabel":
        return ((-power * offset).exp() * labels).amax(dim=1).clamp_min(1.0)
    prior = offset.exp()
    return prior.pow(-power)[labels] / prior.pow(1.0 - power).sum()
