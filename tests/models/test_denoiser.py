from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_diffmic.models.denoiser import Denoiser, ResidualDenoiser
from fed_diffmic.models.diffusion import alphas_cumprod, residual_base
from fed_diffmic.models.guidance import cells_to_map

B, C, K, D, T = 3, 4, 3, 16, 50


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, C, K, K, generator=g),
        torch.randn(B, C, K, K, generator=g),
        torch.randint(T, (B, K, K), generator=g),
        torch.randn(B, D, generator=g),
    )


def denoiser(norm: str) -> Denoiser:
    torch.manual_seed(0)
    head = Denoiser(C, D, T, norm)
    for block in (head.block1, head.block2, head.block3):
        nn.init.normal_(block.timestep_table.weight)
    head.train()
    head(*inputs(1))
    return head


def slow_denoiser(head: Denoiser, m: Tensor, y: Tensor, t: Tensor, prior: Tensor, norm: str) -> Tensor:
    """The description literally: 1x1 convolutions over the grid, normalisation over (B, D, K, K)."""

    def convolution(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    x = torch.cat([m, y], dim=1)
    for number, block in enumerate((head.block1, head.block2, head.block3), start=1):
        x = convolution(block.conv, x) * block.timestep_table.weight[t].permute(0, 3, 1, 2)
        if norm == "batch":
            n = block.norm
            training = n.training
            mean, variance = (None, None) if training else (n.running_mean, n.running_var)
            x = F.batch_norm(x, mean, variance, n.weight, n.bias, training=training, eps=1e-5)
        else:
            cells = [
                F.group_norm(x[:, :, i : i + 1, j : j + 1], 8, block.norm.weight, block.norm.bias)
                for i in range(K)
                for j in range(K)
            ]
            x = torch.cat(cells, dim=2).reshape(B, D, K, K)
        x = F.softplus(x)
        if number == 1:
            x = x * prior[:, :, None, None]
    return convolution(head.head, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_rows_of_cells_are_convolutions_over_the_grid(norm: str, training: bool) -> None:
    head = denoiser(norm).train(training)
    with torch.no_grad():
        expected = slow_denoiser(head, *inputs(), norm=norm)
        torch.testing.assert_close(head(*inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_in_evaluation_a_cell_depends_on_nothing_but_itself(norm: str) -> None:
    head = denoiser(norm).eval()
    m, y, t, prior = inputs()
    with torch.no_grad():
        together = head(m, y, t, prior)
        for i in range(K):
            for j in range(K):
                alone = head.cells(
                    m[:1, :, i, j].unsqueeze(1), y[:1, :, i, j].unsqueeze(1), t[:1, i, j, None], prior[:1]
                )
                torch.testing.assert_close(together[:1, :, i, j], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_group_norm_holds_for_a_cell_in_training_too() -> None:
    head = denoiser("group").train()
    m, y, t, prior = inputs()
    torch.testing.assert_close(head(m, y, t, prior)[:1], head(m[:1], y[:1], t[:1], prior[:1]), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_and_only_the_rows_seen() -> None:
    torch.manual_seed(0)
    head = Denoiser(C, D, T, "batch").train()
    m, y, t, prior = inputs()
    head(m, y, t, prior.requires_grad_()).square().mean().backward()
    assert prior.grad is not None
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
    table = head.block2.timestep_table.weight.grad
    assert table is not None
    assert set(torch.nonzero(table.abs().sum(dim=1)).flatten().tolist()) <= set(t.flatten().tolist())


def test_tables_have_one_row_more_than_timesteps_and_start_at_one() -> None:
    head = Denoiser(C, D, T, "batch")
    for block in (head.block1, head.block2, head.block3):
        assert torch.equal(block.timestep_table.weight, torch.ones(T + 1, D))


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_residual_denoiser_is_the_plain_one_about_the_guidances_probabilities(multilabel: bool) -> None:
    torch.manual_seed(0)
    head = ResidualDenoiser(C, D, T, "group", multilabel=multilabel)
    m, y, t, prior = inputs()
    guess = torch.sigmoid(m) if multilabel else torch.softmax(m, dim=1)
    base, deviation = residual_base(y, guess, alphas_cumprod(T)[t].unsqueeze(1))
    with torch.no_grad():
        torch.testing.assert_close(head(m, y, t, prior), base)  # fresh, it knows what the guidance knows
        torch.testing.assert_close(head.deviation(m, t), deviation)
        nn.init.normal_(head.head.weight)
        plain = Denoiser(C, D, T, "group")
        plain.load_state_dict(head.state_dict())
        torch.testing.assert_close(head(m, y, t, prior), base + deviation * plain(m, y, t, prior))
        alone = head.cells(m[:1, :, 0, 1].unsqueeze(1), y[:1, :, 0, 1].unsqueeze(1), t[:1, 0, 1, None], prior[:1])
        torch.testing.assert_close(head(m, y, t, prior)[:1, :, 0, 1], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_map_layout_is_row_major() -> None:
    torch.manual_seed(0)
    head = Denoiser(C, D, T, "group").eval()
    cells = torch.randn(B, K, C)
    m = cells_to_map(cells)
    t = torch.full((B, K, K), 7)
    with torch.no_grad():
        out = head(m, m, t, torch.ones(B, D))
    torch.testing.assert_close(out, out.transpose(2, 3))
    torch.testing.assert_close(out[:, :, 0, 1], out[:, :, 1, 2])
