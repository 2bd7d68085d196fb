"""Whole sets: what is coded, what stays exact, and error feedback."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.codecs import DELTA, Codec, build_codec, code, codec_names, coded_schema, most_bytes, restore
from fed_diffmic.exchange.payload import Limits, Payload, Tensors, decode, encode
from fed_diffmic.exchange.screening import schema_of

LOSSY = ("bfloat16", "int8", "int4", "topk")


def codec(name: str, share: float = 0.05) -> Codec:
    return build_codec(StrategyConfig(codec=name, topk_share=share))


def a_set(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "norm.running_var": rng.random((16, 16)).astype(np.float32),
        "norm.weight": rng.standard_normal(700).astype(np.float32),
        "norm.num_batches_tracked": np.asarray(2**62 + seed),
        "head.weight": rng.standard_normal((5, 3)).astype(np.float32),
        "mask": rng.integers(0, 2, (20, 20)).astype(bool),
        "algorithm/control.conv.weight": rng.standard_normal((16, 27)).astype(np.float32),
    }


@pytest.mark.parametrize("name", codec_names())
def test_what_is_decoded_is_what_the_sender_says_is_held(name: str) -> None:
    before, after = a_set(1), a_set(2)
    made = code(codec(name), after, before)
    crossed = decode(encode(Payload("train", {}, made.travels)), Limits(2**20)).tensors
    found = restore(codec(name), crossed, before)
    assert list(found) == list(after)
    for key, value in found.items():
        assert value.dtype == after[key].dtype and value.shape == after[key].shape
        np.testing.assert_array_equal(value, made.decoded[key])


@pytest.mark.parametrize("name", LOSSY)
def test_counters_vectors_variances_and_small_tensors_cross_exactly(name: str) -> None:
    made = code(codec(name), a_set(2), a_set(1))
    coded = {key.removeprefix(DELTA) for key in made.travels if key.startswith(DELTA)}
    assert coded == {"conv.weight", "algorithm/control.conv.weight"} == made.residual.keys()
    for key in made.decoded.keys() - coded:
        np.testing.assert_array_equal(made.travels[key], a_set(2)[key])


def test_float32_lets_everything_cross_as_it_is() -> None:
    made = code(codec("float32"), a_set(2), a_set(1))
    assert made.travels.keys() == a_set(2).keys() and not made.residual
    for key, value in made.travels.items():
        np.testing.assert_array_equal(value, a_set(2)[key])


@pytest.mark.parametrize("name", codec_names())
def test_a_receiver_knows_names_and_bytes_beforehand(name: str) -> None:
    schema = schema_of(a_set(1))
    for scale in (0.0, 1e-3, 1.0, 1e30):
        after = {
            key: value * np.float32(scale) if value.dtype.kind == "f" else value for key, value in a_set(2).items()
        }
        travels = code(codec(name), after, a_set(1)).travels
        assert travels.keys() == coded_schema(codec(name), schema).keys()
        assert sum(value.nbytes for value in travels.values()) <= most_bytes(codec(name), schema)


@pytest.mark.parametrize("name", LOSSY)
def test_what_was_left_out_comes_later(name: str) -> None:
    """The sum of all that was decoded is the sum of all that was meant, less what is left over at the end."""
    zero = {"w": np.zeros((40, 50), dtype=np.float32)}
    rng, residual, meant, got = np.random.default_rng(3), {}, 0.0, 0.0
    for _ in range(30):
        step = {"w": rng.standard_normal((40, 50)).astype(np.float32)}
        made = code(codec(name), step, zero, residual)
        meant, got, residual = meant + step["w"].astype(np.float64), got + made.decoded["w"], made.residual
    np.testing.assert_allclose(got + residual["w"], meant, atol=1e-4)
    assert np.abs(residual["w"]).max() > 0


def test_with_error_feedback_topk_reaches_what_it_would_miss() -> None:
    """Two sites pull a coordinate apart and agree on a small one: without feedback the small one never crosses."""

    def run(feedback: bool) -> float:
        weights = {"w": np.zeros((16, 16), dtype=np.float32)}
        pulls = [np.zeros((16, 16), dtype=np.float32) for _ in range(2)]
        pulls[0][0, 0], pulls[1][0, 0] = 1.0, -1.0
        for pull in pulls:
            pull[5, 5] = 0.01
        residuals: list[Tensors] = [{}, {}]
        for _ in range(300):
            made = [
                code(codec("topk", 1 / 256), {"w": weights["w"] + pull}, weights, left if feedback else {})
                for pull, left in zip(pulls, residuals, strict=True)
            ]
            weights = {"w": (made[0].decoded["w"] + made[1].decoded["w"]) / np.float32(2)}
            residuals = [m.residual for m in made]
        return float(weights["w"][5, 5])

    assert run(feedback=False) == 0.0
    assert run(feedback=True) > 1.5


def test_a_change_that_no_codec_can_hold_is_refused() -> None:
    before = {"w": np.zeros((40, 50), dtype=np.float32)}
    for number in (np.nan, np.inf, 2.0**121):
        after = {"w": np.full((40, 50), number, dtype=np.float32)}
        with pytest.raises(ValueError, match="change of w"):
            code(codec("int8"), after, before)


def test_a_coded_set_is_as_small_as_its_codec_says() -> None:
    before = {"w": np.zeros((500, 512), dtype=np.float32)}
    rng = np.random.default_rng(0)
    after = {"w": (rng.standard_normal((500, 512)) * 1e-3).astype(np.float32)}
    most = {"bfloat16": 2.0, "int8": 1.02, "int4": 0.54, "topk": 0.21}
    for name, bytes_each in most.items():
        travels = code(codec(name), after, before).travels
        assert travels[DELTA + "w"].nbytes / math.prod((500, 512)) < bytes_each
