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


class Words:
    """A stream that gives these 53-bit numbers again and again."""

    def __init__(self, *numbers):
        self.data = np.array(numbers, dtype=np.uint64) << np.uint64(11)

    def update(self, data):
        return np.resize(self.data, len(data) // 8).astype("<u8").tobytes()

    def update_into(self, data, buffer):
        buffer[:] = np.frombuffer(self.update(bytes(len(data))), dtype=np.uint8)


@pytest.mark.parametrize("number", [0, 2**53 - 1])
def test_the_outermost_uniforms_lie_inside_and_have_finite_deviates(monkeypatch, number):
    random = Randomness(3)
    monkeypatch.setattr(random, "_stream", Words(number))
    (uniform,) = random.uniform(1)
    assert 0 < uniform < 1
    (deviate,) = random.normal(1).tolist()
    assert abs(deviate) == pytest.approx(8.2, abs=0.2) and (deviate > 0) == (number > 0)


def test_both_tails_are_equally_fine(monkeypatch):
    """Beyond seven deviations a uniform near 1 takes steps that are larger than the next deviate is away."""
    numbers = list(range(2000))
    random = Randomness(3)
    monkeypatch.setattr(random, "_stream", Words(*numbers, *(2**53 - 1 - n for n in numbers)))
    low, high = random.normal(4000).view(2, -1)
    assert torch.equal(low, -high) and len(high.unique()) == 2000
    exact = stats.norm.isf((np.arange(2000) + 0.5) * 2.0**-53)
    np.testing.assert_allclose(high.numpy(), exact, rtol=1e-12)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_stream_goes_on_under_another_key_before_the_ciphers_counter_ends(monkeypatch, seed):
    whole = Randomness(5).uniform(64)
    monkeypatch.setattr("fed_diffmic.privacy.randomness._KEY_BYTES", 160)
    random = Randomness(seed)
    values = np.concatenate([random.uniform(n) for n in (15, 20, 29)])
    assert len(np.unique(values)) == 64 and random._streams == 4
    if seed is not None:
        again = Randomness(seed)
        assert np.array_equal(values, np.concatenate([again.uniform(64)]))
        assert np.array_equal(values[:20], whole[:20]) and not np.isin(values[20:], whole).any()


def test_names_that_read_alike_when_joined_are_other_streams():
    assert not np.array_equal(Randomness(1, "a", "b").uniform(4), Randomness(1, "a\0b").uniform(4))
    assert not np.array_equal(Randomness(1, "a", "b\0c").uniform(4), Randomness(1, "a\0b", "c").uniform(4))


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
