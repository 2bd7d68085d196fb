"""The optimizers of a local update against torch's plain loops, and what they leave alone."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.training.optimizer import build_optimizer, clip_gradients, load_optimizer_state, optimizer_tensors
from tests.toy import toy_spec


class Layers(nn.Module):
    """Named as a stage's module is asked for."""

    def __init__(self):
        super().__init__()
        self.spec, self.stage, self.network = toy_spec(), "plain", nn.Sequential(nn.Linear(7, 33), nn.Linear(33, 5))


def fill(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (seed - 2)


def weights_after(make, seeds=range(4)):
    torch.manual_seed(0)
    module = Layers()
    optimizer = make(module)
    for seed in seeds:
        fill(module.network, seed)
        optimizer.step()
    return [p.detach() for p in module.network.parameters()]


def loops(kind, cfg):
    """The same by torch's own loop over tensors: decay on matrices alone."""

    def make(module):
        split = [[p for p in module.network.parameters() if (p.ndim > 1) == many] for many in (False, True)]
        groups = [{"params": p, "weight_decay": cfg.weight_decay * d} for d, p in enumerate(split)]
        more = {"momentum": cfg.momentum} if kind is torch.optim.SGD else {}
        return kind(groups, lr=cfg.lr, foreach=False, fused=False, **more)

    return make


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_loop_bit_for_bit(momentum):
    cfg = StageConfig(optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.05)
    ours = weights_after(lambda module: build_optimizer(module, cfg))
    assert all(map(torch.equal, ours, weights_after(loops(torch.optim.SGD, cfg))))


def test_adamw_is_torchs_loop_within_rounding():
    cfg = StageConfig(lr=0.1, weight_decay=0.05)
    ours, theirs = weights_after(lambda m: build_optimizer(m, cfg)), weights_after(loops(torch.optim.AdamW, cfg))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_moments_that_were_kept_go_on_as_if_nothing_had_been_kept(kind):
    cfg = StageConfig(optimizer=kind, lr=0.1)
    straight = weights_after(lambda module: build_optimizer(module, cfg))

    def kept(module):
        first = build_optimizer(module, cfg)
        for seed in range(2):
            fill(module.network, seed)
            first.step()
        second = build_optimizer(module, cfg)
        load_optimizer_state(second, module.network, optimizer_tensors(first, module.network))
        return second

    assert all(map(torch.equal, straight, weights_after(kept, seeds=range(2, 4))))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0.0, 0.5, 1.0, 1e3]), st.floats(-4, 4), st.sampled_from([0.0, torch.inf, torch.nan]))
def test_clipping_is_torchs_bit_for_bit(most, size, bad):
    two = [nn.Linear(5, 3), nn.Linear(5, 3)]
    for layer in two:
        layer.weight.grad = torch.linspace(-1, 1, 15).reshape(3, 5) * 10**size + bad
    clip_gradients(list(two[0].parameters()), most)
    if most:
        torch.nn.utils.clip_grad_norm_(two[1].parameters(), most)
    torch.testing.assert_close(two[0].weight.grad, two[1].weight.grad, rtol=0, atol=0, equal_nan=True)


def test_a_step_does_not_load_the_compiler():
    code = """
import sys, torch
from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
class Module: network = torch.nn.Linear(2, 2)
for kind in ("adamw", "sgd"):
    cfg = StageConfig(optimizer=kind)
    optimizer = build_optimizer(Module, cfg)
    set_learning_rate(optimizer, cfg, 0.5)
    Module.network(torch.ones(1, 2)).sum().backward()
    clip_gradients(list(Module.network.parameters()), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"
