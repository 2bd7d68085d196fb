"""Losses against their definitions."""

import numpy as np
import pytest
import torch

from fed_diffmic.training.losses import balancing_weights, classification_loss, label_prior, prior_offset


def test_prior_is_smoothed_and_sums_to_one():
    prior = label_prior(np.array([0, 0, 1]), 3, "multiclass")
    np.testing.assert_allclose(prior, [3 / 6, 2 / 6, 1 / 6])
    many = label_prior(np.array([[1, 0], [1, 0]]), 2, "multilabel")
    np.testing.assert_allclose(many, [3 / 4, 1 / 4])


def test_plain_losses_are_torchs():
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    expected = -torch.log_softmax(logits, 1)[torch.arange(5), labels].mean()
    assert classification_loss(logits, labels, "multiclass").item() == pytest.approx(expected.item())
    multi = torch.nn.functional.one_hot(labels, 3).float()
    p = torch.sigmoid(logits)
    expected = -(multi * p.log() + (1 - multi) * (1 - p).log()).mean()
    assert classification_loss(logits, multi, "multilabel").item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_without_evidence_the_balanced_loss_is_least_at_equal_scores(task):
    """Labels that follow the prior and images that say nothing: the scores must carry no prior."""
    labels = np.array([0] * 70 + [1] * 20 + [2] * 10)
    given = labels if task == "multiclass" else np.eye(3)[labels]
    offset = prior_offset(label_prior(given, 3, task), task)
    target = torch.tensor(labels) if task == "multiclass" else torch.tensor(given).float()
    bias = torch.zeros(3, requires_grad=True)
    loss = classification_loss(bias.expand(100, 3), target, task, offset)
    loss.backward()
    assert bias.grad.abs().max() < 0.02  # smoothing leaves a little
    unadjusted = torch.zeros(3, requires_grad=True)
    classification_loss(unadjusted.expand(100, 3), target, task).backward()
    assert unadjusted.grad.abs().max() > 0.1


@pytest.mark.parametrize(("power", "rare_over_common"), [(0.0, 1.0), (0.5, 4.0), (1.0, 16.0)])
def test_balancing_weights_average_to_one_over_the_site_and_favour_rare_classes(power, rare_over_common):
    prior = torch.tensor([0.64, 0.32, 0.04], dtype=torch.float64)
    labels = torch.tensor([0] * 64 + [1] * 32 + [2] * 4)
    weights = balancing_weights(labels, prior.log(), "multiclass", power)
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[-1] / weights[0]).item() == pytest.approx(rare_over_common)  # (0.64 / 0.04)^power


def test_balancing_weights_of_several_labels_take_the_rarest():
    offset = torch.logit(torch.tensor([0.5, 0.1, 0.01], dtype=torch.float64))
    labels = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert balancing_weights(labels, offset, "multilabel", 0.5).tolist() == pytest.approx([1.0, 1.0, 3.0, 99**0.5])
