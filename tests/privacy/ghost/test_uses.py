"""Norms and sums of units' gradients against backpropagation of one unit at a time, layer by layer."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention, LayerScale
from torch import nn

from fed_diffmic.models.denoiser import Denoiser
from fed_diffmic.models.depthwise import speed_up_depthwise
from fed_diffmic.models.prior import PriorFusion
from fed_diffmic.privacy.ghost import step
from fed_diffmic.privacy.ghost.layout import Layout
from fed_diffmic.privacy.ghost.step import Ghost
from fed_diffmic.privacy.ghost.uses import Convolution, Linear, Lookup, squared_norms
from fed_diffmic.privacy.per_sample import clip_factors

COUNTS = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


def all_tokens(uses, layout):
    """Gram matrices wherever there can be."""
    kinds = {type(use) for use in uses}
    plain = all(getattr(use, "groups", 1) == 1 for use in uses)
    return list(uses) if len(kinds) == 1 and kinds <= {Linear, Lookup, Convolution} and plain else []


def compared(net, images, counts, *, tolerance=1e-9):
    """Both ways to take norms, and the rule's own, against the plain twin; ``net`` gives each image's loss."""
    layout = Layout(counts, torch.device("cpu"))
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    factors = torch.linspace(0.5, 1.5, len(counts), dtype=torch.float64)
    twin = []
    for start, stop in zip(layout.starts[:-1], layout.starts[1:], strict=True):
        found = torch.autograd.grad(net(images[start:stop]).mean(), list(parameters.values()), allow_unused=True)
        twin.append([torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters.values(), strict=True)])
    norms = torch.tensor([sum(g.double().square().sum() for g in unit) ** 0.5 for unit in twin])
    assert (norms > 0).all()
    for choose in (all_tokens, lambda uses, layout: [], step.by_tokens):
        with mock.patch.object(step, "by_tokens", choose):
            ghost = Ghost(parameters, layout, lambda: net(images))
        torch.testing.assert_close(ghost.norms, norms, rtol=tolerance, atol=0)
        sums = dict(ghost.sums(factors))
        for place, name in enumerate(parameters):
            want = sum(f * unit[place].double() for f, unit in zip(factors, twin, strict=True))
            got = sums[name].double() if name in sums else torch.zeros_like(want)
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


class Net(nn.Module):
    """Layers, and a loss for each image that no layer's gradient is the same all over for."""

    def __init__(self, *layers, rows=1):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.rows = rows

    def forward(self, x):
        if self.rows > 1:
            x = x.flatten(0, 1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        flat = x.reshape(-1, self.rows, x[0].numel()).flatten(1)
        return (flat * torch.linspace(-1, 1, flat.shape[1], dtype=flat.dtype)).sum(dim=1).square()


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=8, deadline=None)
@given(counts=COUNTS, tokens=st.integers(1, 4), seed=st.integers(0, 99), bias=st.booleans())
def test_linear_layers_on_tokens(counts, tokens, seed, bias):
    net = Net(nn.Linear(3, 5, bias=bias), nn.Linear(5, 2, bias=bias)).double()
    compared(net, drawn(seed, sum(counts), tokens, 3), counts)


@settings(max_examples=20, deadline=None)
@given(
    counts=COUNTS,
    seed=st.integers(0, 99),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    crops=st.integers(1, 2),
)
def test_convolutions(counts, seed, kernel, stride, padding, dilation, groups, crops):
    """Of whole images, and of several crops an image, which come as rows."""
    conv = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups)
    x = drawn(seed, sum(counts), crops, 4, 5, 6)
    compared(Net(conv, rows=crops).double(), x if crops > 1 else x[:, 0], counts)


@pytest.mark.parametrize("side", [2, 3, 6])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions_also_where_they_are_matrix_products(side, multiplier):
    net = Net(nn.Conv2d(4, 4 * multiplier, 3, 1 + (side > 2), 1, groups=4), rows=2).double()
    assert speed_up_depthwise(net) == (multiplier == 1)
    compared(net, drawn(side, 4, 2, 4, side, side), (1, 2, 1))


@settings(max_examples=8, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 99), cells=st.integers(3, 5))
def test_group_and_layer_norms(counts, seed, cells):
    scaled = nn.LayerNorm((6, cells)).double(), nn.GroupNorm(3, 6).double(), nn.LayerNorm(cells).double()
    for norm in scaled:
        for p in norm.parameters():
            nn.init.normal_(p)
    compared(Net(*scaled), drawn(seed, sum(counts), 6, cells), counts)


class Table(nn.Module):
    """Rows of a table by number, scaled."""

    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.tied = tied

    def forward(self, index):
        x = torch.tanh(self.table(index))
        if self.tied:  # the same weight, another way
            x = F.linear(x, self.table.weight)
        return (x.square() * torch.arange(1, x[0].numel() + 1).view(x.shape[1:])).flatten(1).sum(dim=1)


@settings(max_examples=8, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 99), tied=st.booleans())
def test_tables_also_where_the_weight_serves_twice(counts, seed, tied):
    index = torch.randint(7, (sum(counts), 6), generator=torch.Generator().manual_seed(seed))
    compared(Table(tied).double(), index, counts)


class Twice(nn.Module):
    """A layer that is called more than once, on inputs of unlike sizes, and once with its weight alone."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        first = torch.tanh(self.layer(x))
        second = self.layer(torch.cat([first, x], dim=2))
        if isinstance(self.layer, nn.Linear):
            second = second + F.linear(x.sum(dim=1, keepdim=True), self.layer.weight)
        return second.flatten(1).square().sum(dim=1)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2), (3, 1)])
def test_a_layer_that_is_called_twice_counts_as_one(counts):
    compared(Twice(nn.Conv2d(3, 3, 3, padding=1)).double(), drawn(0, sum(counts), 3, 2, 4), counts)
    tokens = drawn(1, sum(counts), 2, 3)
    layer = nn.Linear(3, 3)
    net = Twice(layer).double()
    net.forward = lambda x: (layer(torch.tanh(layer(x))) + F.linear(x, layer.weight)).flatten(1).square().sum(dim=1)
    compared(net, tokens, counts)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_with_positions_and_scaled_layers(fused):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.randn(1, 5, 8))
            self.norm = nn.LayerNorm(8)
            self.attention = Attention(8, num_heads=2, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)
            self.attention.fused_attn = fused
            self.scale = LayerScale(8, init_values=0.7, inplace=True)

        def forward(self, x):
            x = x + self.positions
            x = x + self.scale(self.attention(self.norm(x)))
            return (x * torch.arange(8)).flatten(1).square().mean(dim=1)

    compared(Block().double(), drawn(0, 4, 5, 8), (2, 1, 1))


def test_the_networks_own_parts():
    """Gates that go through a softmax; tables, tokens and norms of the cells."""
    fusion = PriorFusion(16, 2, "group").double()
    nn.init.normal_(fusion.gate)
    denoiser = Denoiser(3, 16, 10, "group").double()
    t = torch.randint(10, (4, 2, 2), generator=torch.Generator().manual_seed(0))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.fusion, self.denoiser = fusion, denoiser

        def forward(self, x):
            prior = self.fusion(x[:, 0], x[:, 1:])
            maps = x[:, :3, :4].unflatten(2, (2, 2))
            return self.denoiser(maps, maps.tanh(), t[: len(x)], prior).flatten(1).square().sum(dim=1)

    # Two units would see other timesteps alone, so the twin's images must begin where theirs do.
    compared(Whole(), drawn(3, 4, 3, 16), (4,))


def test_single_precision_agrees_to_its_own():
    net = Net(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 4))
    compared(net, drawn(5, 5, 3, 6, 6).float(), (2, 1, 2), tolerance=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 1.0]), width=st.integers(4, 400))
def test_tokens_that_cancel_are_not_clipped_too_little(seed, spread, width):
    """In float32 a sum of Gram terms that cancel comes out with the rounding of the terms, not of the sum."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(3, 1, width, generator=generator).expand(3, 8, width)
    a = a + spread * torch.randn(3, 8, width, generator=generator)
    g = torch.randn(3, 4, width, generator=generator)
    g = torch.cat([g, -g], dim=1)
    use, layout = Linear(a.contiguous(), g), Layout((1, 1, 1), torch.device("cpu"))
    norms = squared_norms([use], layout).clamp_min(0).sqrt()
    for bound in (1e-3, 1.0, 1e3):
        factors = clip_factors(norms, bound)
        for unit in range(3):
            only = torch.zeros(3, dtype=torch.float64)
            only[unit] = factors[unit]
            assert use.weighted(only, layout).double().norm() <= bound
