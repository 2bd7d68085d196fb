"""Norms that rounding would make too small, and what surrounds a private step: no unit is clipped too little."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fed_diffmic.privacy import per_sample
from fed_diffmic.privacy.ghost import step
from fed_diffmic.privacy.ghost.layout import Layout
from fed_diffmic.privacy.ghost.proof import why_not
from fed_diffmic.privacy.ghost.sum import summed
from fed_diffmic.privacy.ghost.uses import Linear, Lookup, squared_norms
from tests.privacy.ghost.test_proof import Known, stage, units


def exact(use, layout):
    """Squared norms of what the same numbers give in float64."""
    a, g = use.tokens()
    rows = [slice(*span) for span in zip(layout.starts[:-1], layout.starts[1:], strict=True)]
    pairs = [(a[span].double().flatten(0, 1), g[span].double().flatten(0, 1)) for span in rows]
    return torch.stack([(g.T @ a).square().sum() for a, g in pairs])


@pytest.mark.parametrize("tokens", [2, 256])
@pytest.mark.parametrize("spread", [0.0, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_tokens_of_two_kinds_that_cancel(tokens, spread, scale):
    """All tokens of a kind have the same rounding, so it adds up where the tokens' gradients cancel (a flat image
    before a norm that takes the mean away)."""
    generator, layout = torch.Generator().manual_seed(0), Layout((1, 1), torch.device("cpu"))
    sign = torch.ones(tokens, 1)
    sign[1::2] = -1
    a = torch.rand(2, 1, 96, generator=generator) + spread * sign * torch.randn(2, 1, 96, generator=generator)
    g = scale * sign * torch.rand(2, 1, 64, generator=generator)
    use = Linear(a, g)
    found, want = squared_norms([use], layout), exact(use, layout)
    assert (found >= want).all()
    if spread > 1e-5:  # and not much too large either
        torch.testing.assert_close(found, want, rtol=1e-3, atol=0)
    # The sum is made in float32: its own rounding is no longer than the bound either.
    factors = per_sample.clip_factors(found.sqrt(), 1e-3)
    for unit in range(2):
        only = torch.zeros(2, dtype=torch.float64)
        only[unit] = factors[unit]
        assert use.weighted(only, layout).double().norm() <= 1e-3


@pytest.mark.parametrize("tokens", [1, 5])
def test_products_that_are_no_numbers_any_more_count(tokens):
    """Weights that make activations huge and what comes back tiny: squares of the one vanish, the gradient does not."""
    layout = Layout((1,), torch.device("cpu"))
    for a, g in [(1e17, 1e-23), (1e-23, 1e17)]:
        use = Linear(torch.full((1, tokens, 40), a), torch.full((1, tokens, 50), g))
        assert (squared_norms([use], layout) >= 0.999 * exact(use, layout)).all()
    table = Lookup(torch.zeros(1, tokens, dtype=torch.int64), torch.full((1, tokens, 50), 1e-24), 3)
    assert squared_norms([table], layout).sqrt() >= 1e-24 * tokens * 50**0.5


def test_a_gradient_of_tiny_entries_is_clipped_to_a_tiny_bound():
    gradients = {"w": torch.full((2, 100, 100), 1e-23)}
    assert per_sample.norms(gradients).min() >= 1e-21
    assert per_sample.clipped_sum(gradients, 1e-24)["w"].double().norm() <= 2e-24


def test_a_unit_that_overflows_only_when_another_one_has_left_is_left_out_too(monkeypatch):
    module, chunk, whole, calls = stage(Known), units((1, 1, 1)), step.ghost_of, []

    def rounded(module, units):
        ghost = whole(module, units)
        if len(calls) < 2:
            ghost.norms[0] = torch.inf
        calls.append(len(units))
        return ghost

    monkeypatch.setattr(step, "ghost_of", rounded)
    found = dict(step.clipped_sums(module, chunk, 0.3))
    assert calls == [3, 2, 1]
    last = replace(chunk, mask=chunk.mask * torch.tensor([[0.0], [0.0], [1.0]]))
    for name, value in step.clipped_sums(module, last, 0.3):
        torch.testing.assert_close(found[name], value)


class Hidden(nn.Module):
    """A branch whose rows are not images in order, behind a scale next to 0 that training makes larger."""

    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.full((4,), 1e-6))

    def forward(self, x):
        rows = torch.stack([x, 2 * x]).flatten(0, 1)
        found = torch.tanh(self.branch(rows)).unflatten(0, (2, -1)).sum(dim=0)
        return self.head(x + found * self.scale)


@pytest.mark.parametrize("trained", [True, False])
def test_what_a_scale_next_to_0_hides_is_looked_at(trained):
    module = stage(Hidden)
    module.network.scale.requires_grad_(trained)
    before = module.network.scale.detach().clone()
    assert "branch" in why_not(module, units((2, 1)))
    assert torch.equal(module.network.scale, before)


def test_what_surrounds_a_step_does_not_change_what_it_computes_in(monkeypatch):
    module, chunk = stage(Known).float(), units((2, 1))
    chunk = replace(chunk, inputs=chunk.inputs.float())
    want = summed(module, iter([chunk]), 0.3)
    seen, forward = [], Known.forward

    def watched(self, x):
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return forward(self, x)

    monkeypatch.setattr(Known, "forward", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = summed(module, iter([chunk]), 0.3)
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {(False, "highest")}
    for name, value in want.items():
        assert torch.equal(found[name], value)
