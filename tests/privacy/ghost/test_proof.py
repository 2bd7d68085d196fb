"""Who is trained together, who one by one, and what a wrong choice would have cost."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fed_diffmic.privacy import per_sample
from fed_diffmic.privacy.ghost import proof
from fed_diffmic.privacy.ghost.proof import why_not
from fed_diffmic.privacy.ghost.step import clipped_sums, ghost_of
from fed_diffmic.privacy.ghost.sum import summed
from fed_diffmic.privacy.ghost.tape import CannotTapeError
from fed_diffmic.privacy.per_sample import Units, norms, trained, unit_gradients
from fed_diffmic.training.stage import StageModule
from tests.toy import toy_spec


class Stage(StageModule):
    """A stage around any network from ``(B, 4)`` to ``(B,)`` losses."""

    def __init__(self, network):
        super().__init__(toy_spec(), "plain", network.double())

    def losses(self, batch, draws):
        return self.network(batch.inputs).square().flatten(1).sum(dim=1)


class Known(nn.Module):
    """Two layers, and whatever happens between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def between(self, x):
        return torch.tanh(x)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class PastTheLayer(Known):
    """The weight is used, the layer is not called."""

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x, self.first.weight, self.first.bias)), self.second.weight)


class Unknown(Known):
    """A function of a weight that there is no rule for."""

    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.first.weight) @ self.second.weight.T


class Cube(torch.autograd.Function):
    """A product with a gradient of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return F.linear(x, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, 3 * g.transpose(-1, -2) @ x


class OwnGradient(Known):
    """A weight inside a function whose gradient is not that of what it computes."""

    def forward(self, x):
        return self.second(torch.tanh(Cube.apply(x, self.first.weight)))


class OfAWeight(Known):
    """The same, of something that was computed of the weight alone."""

    def forward(self, x):
        return self.second(torch.tanh(Cube.apply(x, torch.softmax(self.first.weight, dim=1))))


class Mixing(Known):
    """The mean over the batch, which is another unit's affair."""

    def between(self, x):
        return torch.tanh(x - x.mean(dim=0))


class Overwriting(Known):
    """What a layer took in is written over, which nothing that autograd keeps would tell."""

    def forward(self, x):
        x = x.clone()
        y = torch.tanh(self.first(x))
        x.zero_()
        return self.second(y)


class OtherOrder(Known):
    """Rows that are not images in order."""

    def forward(self, x):
        rows = torch.stack([x, 2 * x]).flatten(0, 1)  # the first rows of all images, then their second ones
        return self.second(torch.tanh(self.first(rows))).unflatten(0, (2, -1)).sum(dim=0)


def units(counts, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    most = max(counts)
    return Units(
        scale * torch.randn(len(counts), most, 4, generator=generator, dtype=torch.float64),
        torch.zeros(len(counts), most, dtype=torch.int64),
        (),
        torch.tensor([[float(place < count) for place in range(most)] for count in counts]),
        None,
    )


def stage(network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Stage(network())


TAKEN = [Known, PastTheLayer]
REFUSED = [Unknown, OwnGradient, OfAWeight, Mixing, Overwriting, OtherOrder]


@pytest.mark.parametrize("network", TAKEN)
def test_what_is_known_is_taken_together_whoever_calls_it(network):
    assert why_not(stage(network), units((2, 1))) == ""


@pytest.mark.parametrize("network", REFUSED)
def test_what_is_not_known_or_mixes_is_found_out(network):
    assert why_not(stage(network), units((2, 1))) != ""


@pytest.mark.parametrize("network", [Unknown, OwnGradient, OfAWeight])
def test_a_use_that_is_not_followed_stops_a_step_too(network):
    with pytest.raises(CannotTapeError, match="is used in a way that is not known"):
        ghost_of(stage(network), units((2, 1)))


def test_what_was_written_over_stops_a_step():
    with pytest.raises(CannotTapeError, match="overwritten before its gradient came"):
        ghost_of(stage(Overwriting), units((2, 1)))


@pytest.mark.parametrize("network", [*TAKEN, Unknown, OtherOrder])
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3)])
def test_the_sum_is_that_of_one_unit_at_a_time_either_way(network, counts):
    module, chunk = stage(network), units(counts)
    fast = summed(module, iter([chunk]), 0.3)
    slow = per_sample.summed(module, iter([chunk]), 0.3)
    assert fast.keys() == slow.keys()
    for name, value in fast.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", [*TAKEN, *(each for each in REFUSED if each is not Overwriting)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_sum_is_longer_than_the_bound_for_each_unit(network, scale):
    """A unit alone, and many that pull the same way. (What writes over its input cannot be mapped either.)"""
    module = stage(network)
    for counts in [(1,), (3,), (2,) * 5]:
        chunk = units(counts, scale=scale)
        chunk = replace(chunk, inputs=chunk.inputs[:1].expand(len(counts), -1, -1))
        total = summed(module, iter([chunk]), 0.01)
        assert sum(value.square().sum() for value in total.values()) ** 0.5 <= 0.01 * len(counts)


def test_the_trial_is_made_once_of_random_images_and_changes_nothing(monkeypatch):
    module, tries = stage(Known), []
    whole = proof._differs
    monkeypatch.setattr(proof, "_differs", lambda *given: tries.append(given[1]) or whole(*given))
    nn.init.zeros_(module.network.second.weight)  # hides what lies before it
    before = {name: p.detach().clone() for name, p in trained(module).items()}
    state = torch.get_rng_state()
    for seed in range(3):
        assert why_not(module, units((1, 2), seed)) == ""
    (tried,) = tries
    assert tried.mask.tolist() == [[1, 1], [1, 0]]
    assert not torch.isin(tried.inputs, units((1, 2)).inputs).any()
    assert torch.equal(state, torch.get_rng_state())
    for name, p in trained(module).items():
        assert torch.equal(p, before[name]) and p.grad is None
    module.network.first.requires_grad_(False)  # another network, as it were
    why_not(module, units((1, 2)))
    assert len(tries) == 2


def test_what_a_zero_weight_hides_is_looked_at():
    module = stage(Mixing)
    nn.init.zeros_(module.network.second.weight)
    nn.init.zeros_(module.network.second.bias)
    assert why_not(module, units((2, 1))) != ""
    assert not module.network.second.weight.any()


def test_a_unit_without_a_finite_gradient_is_left_out_and_one_without_images_too():
    module = stage(Known)
    broken, whole = units((2, 1, 2)), units((2, 1, 2))
    broken.inputs[1, 0, 2] = torch.inf
    broken.inputs[0, 1, 0] = torch.nan
    left = replace(whole, mask=whole.mask * torch.tensor([[0.0], [0.0], [1.0]]))
    found = dict(clipped_sums(module, broken, 0.3))
    want = dict(clipped_sums(module, left, 0.3))
    assert found.keys() == want.keys() != set()
    for name, value in found.items():
        assert torch.isfinite(value).all() and torch.equal(value, want[name])
    assert dict(clipped_sums(module, replace(whole, mask=0 * whole.mask), 0.3)) == {}


def test_padded_places_have_no_part():
    module, chunk = stage(Known), units((1, 3))
    chunk.inputs[0, 1:] = torch.inf
    twin = norms(
        unit_gradients(module, replace(chunk, inputs=chunk.inputs[1:], labels=chunk.labels[1:], mask=chunk.mask[1:]))
    )
    found = ghost_of(module, chunk).norms
    torch.testing.assert_close(found[1:], twin, rtol=1e-9, atol=0)
    assert torch.isfinite(found).all()


def test_frozen_parts_make_no_gradients_and_none_is_left_behind():
    module = stage(Known)
    module.network.first.requires_grad_(False)
    total = summed(module, iter([units((1, 2))]), 1.0)
    assert sorted(total) == ["second.bias", "second.weight"]
    assert all(p.grad is None for p in module.network.parameters())
