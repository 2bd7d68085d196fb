"""What a step holds of its sum: one chunk's as it came, several in float64, and noise in float64 in any case."""

from types import SimpleNamespace

import pytest
import torch

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy.dp_sgd import Plan, _Noisy
from fed_diffmic.privacy.ghost import sum as step_sum
from fed_diffmic.privacy.randomness import Randomness


class Chunk:
    """A unit whose clipped gradient is known."""

    mask = torch.ones(1, 1)

    def __init__(self, value):
        self.value = torch.tensor([value])

    def __len__(self):
        return 1


@pytest.fixture
def sums(monkeypatch):
    """Sums over chunks of such units."""
    monkeypatch.setattr(step_sum, "_clipped", lambda module, units, bound: iter([("w", units.value)]))
    monkeypatch.setattr(step_sum, "trained", lambda module: {"w": torch.zeros(1), "v": torch.zeros(2)})
    return lambda *values: step_sum.summed(None, iter([Chunk(value) for value in values]), 1.0)


def test_several_chunks_are_added_in_float64(sums):
    """In float32 the small ones would be lost one after the other."""
    assert sums(1.0, *[2.0**-30] * 3)["w"].item() == 1 + 3 * 2.0**-30
    assert sums(1.0, 1.0)["w"].dtype == torch.float64


def test_a_single_chunks_sum_is_held_as_it_came(sums):
    found = sums(1 / 3)
    assert found["w"].dtype == torch.float32 and found["w"].item() == torch.tensor(1 / 3).item()
    assert found["v"].dtype == torch.float64 and not found["v"].any()  # no gradient reached it
    assert sums()["w"].dtype == torch.float64


def test_noise_is_added_in_float64_whatever_the_sum_is_held_in():
    def noised(total):
        source = SimpleNamespace(privacy=PrivacyConfig(name="dp_sgd", max_grad_norm=0.5))
        return _Noisy(source, Plan(9, 0.5, 1, 1.3, 3.0), Randomness(4), "cpu")._noised(total)

    total = torch.linspace(-1, 1, 1000)
    narrow, wide = noised(total.clone()), noised(total.double())
    assert narrow.dtype == torch.float64 and torch.equal(narrow, wide)
