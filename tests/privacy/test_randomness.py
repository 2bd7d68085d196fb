import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtri

from fed_diffmic.privacy.randomness import Randomness


def test_every_stream_is_another_one():
    first, second = Randomness().uniform(1000), Randomness().uniform(1000)
    assert not np.isin(first, second).any()


def test_a_stream_of_a_test_seed_is_the_same_again_and_another_for_other_parts():
    assert torch.equal(Randomness(7, "a", 1).normal(100), Randomness(7, "a", 1).normal(100))
    assert not torch.equal(Randomness(7, "a", 1).normal(100), Randomness(7, "a", 2).normal(100))


def test_the_runs_seed_has_no_part_in_it(monkeypatch):
    """Same operating system's bytes, same stream: nothing else goes in."""
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    np.random.seed(0)
    first = Randomness().normal(50)
    np.random.seed(1)
    assert torch.equal(first, Randomness().normal(50))


def test_uniforms_fill_the_open_interval_evenly():
    values = Randomness(1).uniform(200_000)
    assert values.min() > 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-6


def test_normals_are_normal_and_of_variance_one():
    values = Randomness(2).normal(1_100_000).numpy()
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(1, abs=0.004)
    assert values.mean() == pytest.approx(0, abs=0.005)
    assert stats.kstest(values[:200_000], "norm").pvalue > 1e-6
    assert Randomness(2).normal(0).shape == (0,)


def test_normals_are_the_uniforms_inverted_in_blocks_of_any_size(monkeypatch):
    monkeypatch.setattr("fed_diffmic.privacy.randomness._BLOCK", 1000)
    values = Randomness(2).normal(10_500)
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values.numpy(), ndtri(Randomness(2).uniform(10_500)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_the_outermost_uniforms_have_finite_deviates(monkeypatch, byte):
    class Stuck:
        def update(self, data):
            return bytes([byte]) * len(data)

    random = Randomness(3)
    monkeypatch.setattr(random, "_stream", Stuck())
    (deviate,) = random.normal(1).tolist()
    assert abs(deviate) == pytest.approx(8.2, abs=0.1) and (deviate > 0) == (byte == 0xFF)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_inclusion_is_independent_with_the_given_frequency(rate):
    random, draws, units = Randomness(4), 4000, 50
    taken = np.zeros((draws, units), dtype=bool)
    for row in taken:
        row[random.included(units, rate)] = True
    spread = np.sqrt(rate * (1 - rate) / draws)
    assert np.abs(taken.mean(axis=0) - rate).max() <= 6 * spread
    counts = taken.sum(axis=1)
    assert counts.var() == pytest.approx(units * rate * (1 - rate), rel=0.15, abs=1e-12)
