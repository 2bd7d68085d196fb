from __future__ import annotations

import numpy as np
import pytest
import torch

from fed_diffmic.models.diffusion import (
    alphas_cumprod,
    ddim_schedule,
    ddim_step,
    ddim_timesteps,
    diffusion_loss,
    forward_diffusion,
    residual_base,
    true_class_probability,
)


@pytest.mark.parametrize("timesteps", [10, 500, 1000])
def test_schedule(timesteps: int) -> None:
    betas = np.linspace(1e-4, 0.02, timesteps)
    np.testing.assert_allclose(alphas_cumprod(timesteps).numpy(), np.cumprod(1 - betas), atol=1e-6)


def test_each_cell_has_its_own_timestep() -> None:
    g = torch.Generator().manual_seed(0)
    abar = alphas_cumprod(100)
    y0, noise = torch.eye(4)[:3], torch.randn(3, 4, 2, 2, generator=g)
    t = torch.randint(100, (3, 2, 2), generator=g)
    noisy = forward_diffusion(y0, t, noise, abar)
    for b in range(3):
        for i in range(2):
            for j in range(2):
                a = abar[t[b, i, j]]
                expected = a.sqrt() * y0[b] + (1 - a).sqrt() * noise[b, :, i, j]
                torch.testing.assert_close(noisy[b, :, i, j], expected)


@pytest.mark.parametrize("abar", [0.9999, 0.6, 0.03])
@pytest.mark.parametrize("probability", [0.02, 0.3, 0.9])
def test_the_residual_base_is_the_best_linear_estimate_of_the_noise(probability: float, abar: float) -> None:
    g = torch.Generator().manual_seed(3)
    n = 400_000
    label = (torch.rand(n, generator=g, dtype=torch.float64) < probability).double()
    noise = torch.randn(n, generator=g, dtype=torch.float64)
    a = torch.tensor(abar, dtype=torch.float64)
    noisy = a.sqrt() * label + (1 - a).sqrt() * noise
    base, deviation = residual_base(noisy, torch.full_like(noisy, probability), a)
    # Ordinary least squares finds the same line, and what the line misses has the stated size.
    design = torch.stack([noisy, torch.ones_like(noisy)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, noise.unsqueeze(1)).solution[:, 0]
    assert (base - fitted).square().mean().sqrt() < 0.01
    assert (noise - base).square().mean().sqrt() / deviation[0] == pytest.approx(1, abs=0.02)


def test_a_guess_that_is_sure_leaves_room_for_being_wrong() -> None:
    a = torch.tensor(0.5)
    base, deviation = residual_base(torch.tensor([0.7]), torch.tensor([1.0]), a)
    whole = 0.5 * 0.01 + 0.5
    assert base.item() == pytest.approx(0.5**0.5 * (0.7 - 0.5**0.5) / whole, rel=1e-5)
    assert deviation.item() == pytest.approx((0.5 * 0.01 / whole) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
def test_loss_image_by_image(task: str) -> None:
    g = torch.Generator().manual_seed(1)
    b, c, k, alpha, gamma = 5, 4, 3, 10.0, 1.5
    logits = torch.randn(b, c, generator=g)
    predicted, noise = torch.randn(b, c, k, k, generator=g), torch.randn(b, c, k, k, generator=g)
    indices = torch.randint(c, (b,), generator=g)
    labels = (torch.rand(b, c, generator=g) > 0.5).float() if task == "multilabel" else indices
    total = 0.0
    for n in range(b):
        if task == "multilabel":
            z = torch.sigmoid(logits[n])
            p = float(torch.stack([z[i] if labels[n, i] == 1 else 1 - z[i] for i in range(c)]).mean())
        else:
            p = float(torch.softmax(logits[n], dim=0)[indices[n]])
        total += (1 + alpha * (1 - p) ** gamma) * float((predicted[n] - noise[n]).square().sum())
    loss = diffusion_loss(predicted, noise, labels, logits, alpha, gamma, task)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(total / (b * c * k * k), rel=1e-5)


def test_one_hot_and_index_labels_agree() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 1, 2, 2, 1, 0])
    by_index = true_class_probability(logits, index, "multiclass")
    torch.testing.assert_close(true_class_probability(logits, torch.eye(3)[index], "ordinal"), by_index)


def test_no_gradient_flows_into_the_guidance() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    predicted = torch.randn(2, 3, 2, 2, requires_grad=True)
    diffusion_loss(predicted, torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]), logits, 10, 1, "multiclass").backward()
    assert logits.grad is None
    assert predicted.grad is not None


def test_certain_guidance_gives_weight_one() -> None:
    logits = torch.tensor([[1000.0, 0.0]])
    noise = torch.zeros(1, 2, 2, 2)
    for gamma in (0.5, 1.0, 2.0):
        loss = diffusion_loss(noise + 1, noise, torch.tensor([0]), logits, 10.0, gamma, "multiclass")
        assert float(loss) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("timesteps", "steps", "expected"),
    [
        (1000, 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (1000, 1, [0]),
        (10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (1000, 3, [666, 333, 0]),
        (500, 7, [426, 355, 284, 213, 142, 71, 0]),
    ],
)
def test_leading_spacing(timesteps: int, steps: int, expected: list[int]) -> None:
    assert ddim_timesteps(timesteps, steps) == expected
    abar = alphas_cumprod(timesteps).tolist()
    schedule = ddim_schedule(timesteps, steps)
    assert [t for t, _, _ in schedule] == expected
    assert [a for _, a, _ in schedule] == [abar[t] for t in expected]
    assert [p for _, _, p in schedule] == [abar[t] for t in expected[1:]] + [1.0]


@pytest.mark.parametrize(("timesteps", "steps"), [(10, 11), (10, 0)])
def test_impossible_steps(timesteps: int, steps: int) -> None:
    with pytest.raises(ValueError, match="sampling steps"):
        ddim_timesteps(timesteps, steps)


def test_ddim_with_the_true_noise_recovers_the_label() -> None:
    abar = alphas_cumprod(1000).tolist()
    y0 = torch.eye(3)
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    y = abar[900] ** 0.5 * y0 + (1 - abar[900]) ** 0.5 * noise
    for _, a, previous in ddim_schedule(1000, 10):
        y = ddim_step(y, noise, a, previous)
    torch.testing.assert_close(y, y0, rtol=1e-4, atol=1e-4)


def test_clipping_leaves_the_predicted_noise_as_it_is() -> None:
    y = torch.tensor([5.0])
    noise = torch.tensor([0.25])
    a, previous = 0.5, 0.8
    assert (5.0 - 0.5**0.5 * 0.25) / 0.5**0.5 > 1
    expected = 0.8**0.5 * 1.0 + 0.2**0.5 * 0.25
    assert float(ddim_step(y, noise, a, previous)) == pytest.approx(expected, rel=1e-6)
