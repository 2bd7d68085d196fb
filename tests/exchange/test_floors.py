"""Floors by themselves: what an update must rest on, and what a series of them must not single out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.compose import compose
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.exchange.failures import FLOOR_REUSE, FLOOR_SHARE, FLOOR_STEP, FLOOR_UPDATE, SiteError
from fed_diffmic.exchange.floors import Exposure, check_exposure, check_reuse, check_share, largest_share
from fed_diffmic.training.local import batches

ENOUGH = Exposure(np.ones(40, np.int64), steps=3, step_images=8, step_patients=4, images=10, patients=5)


@pytest.mark.parametrize(
    ("name", "below", "code"),
    [
        ("step_images", 7, FLOOR_STEP),
        ("step_patients", 3, FLOOR_STEP),
        ("images", 9, FLOOR_UPDATE),
        ("patients", 4, FLOOR_UPDATE),
        ("steps", 0, FLOOR_UPDATE),
    ],
)
def test_each_floor_is_one(name: str, below: int, code: int) -> None:
    check_exposure(Floors(), ENOUGH)
    with pytest.raises(SiteError) as caught:
        check_exposure(Floors(), replace(ENOUGH, **{name: below}))
    assert caught.value.code == code


def test_few_images_are_used_so_often_and_many_images_ever() -> None:
    few = replace(ENOUGH, counts=np.r_[np.ones(10, np.int64), np.zeros(30, np.int64)])
    uses = np.full(40, 59)
    check_reuse(Floors(), few, uses)
    uses[20] = 60  # not in this update
    check_reuse(Floors(), few, uses)
    uses[3] = 60
    with pytest.raises(SiteError) as caught:
        check_reuse(Floors(), few, uses)
    assert caught.value.code == FLOOR_REUSE
    check_reuse(Floors(), replace(few, images=32), uses)


def test_the_share_of_known_cases() -> None:
    whole = np.ones(40)
    assert largest_share(whole[None]) == pytest.approx(1 / 40)
    for gone in (1, 2, 5):
        assert largest_share(np.stack([whole, np.r_[np.zeros(gone), np.ones(40 - gone)]])) == pytest.approx(1 / gone)
    assert largest_share(np.stack([3 * whole, 7 * whole, whole])) == pytest.approx(1 / 40)
    halves = np.stack([np.r_[np.ones(20), np.zeros(20)], np.r_[np.zeros(20), np.ones(20)]])
    assert largest_share(halves) == pytest.approx(1 / 20)
    swap = np.stack([np.r_[np.ones(8), np.zeros(8)], np.r_[0, np.ones(8), np.zeros(7)]])
    assert largest_share(swap) > 0.5
    assert largest_share(np.zeros((1, 4))) == 0.0


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_share_is_what_the_best_weighted_sum_leaves(rows: int, columns: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(np.float64)
    best = 0.0
    for unit in range(columns):  # the slow twin: least squares towards each unit alone
        wanted = np.eye(columns)[unit]
        weights, *_ = np.linalg.lstsq(counts.T, wanted, rcond=1e-10)
        best = max(best, 1 - float(((counts.T @ weights - wanted) ** 2).sum()))
    assert largest_share(counts) == pytest.approx(best, abs=1e-6)


def test_patients_are_held_to_the_share_like_images() -> None:
    counts = np.ones((2, 60), np.int64)
    counts[1, :20] = 0  # all images of one patient missed a round
    patients = np.r_[np.zeros(20), np.repeat(np.arange(1, 11), 4)]
    with pytest.raises(SiteError) as caught:
        check_share(Floors(), counts, patients)
    assert caught.value.code == FLOOR_SHARE and "patient" in str(caught.value)
    check_share(Floors(), counts, np.arange(60))
    check_share(replace(Floors(), largest_share=1.0), counts, patients)


@pytest.mark.parametrize("preset", ["tiny", "compact", "paper"])
@pytest.mark.parametrize("images", [10, 17, 33, 64, 129, 143, 199, 400])
def test_the_presets_pass_their_whole_run_on_sites_of_any_size(preset: str, images: int) -> None:
    stages = compose(None, [f"stages={preset}"]).stages
    for stage in ("guidance", "diffusion"):
        cfg = getattr(stages, stage)
        rows, steps = [], cfg.local_steps(images)
        for index in range(cfg.rounds):
            counts = np.zeros(images, np.int64)
            for _, chosen in zip(
                range(steps), batches(images, cfg.batch_size, np.random.default_rng(index)), strict=False
            ):
                assert len(chosen) >= Floors().step_images
                counts[chosen] += 1
            rows.append(counts)
        check_share(Floors(), np.stack(rows), np.arange(images))
        assert images >= Floors().few_images or cfg.rounds <= Floors().few_rounds


def test_batches_of_eight_of_64_images_end_long_before_they_can_be_solved() -> None:
    rows: list[np.ndarray] = []

    def until_refused() -> None:
        for index in range(64):
            counts = np.zeros(64, np.int64)
            counts[next(batches(64, 8, np.random.default_rng(index)))] = 1
            rows.append(counts)
            check_share(Floors(), np.stack(rows), np.arange(64))

    with pytest.raises(SiteError):
        until_refused()
    assert 2 < len(rows) < 16
    assert math.isclose(largest_share(np.stack([np.roll(rows[0], k) for k in range(64)])), 1.0, abs_tol=1e-6)
