"""The attacks work where nothing stops them, and the shipped floors stop them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fed_diffmic.config.compose import compose, compose_site
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.privacy.inversion.report import CHANCE, INVERTED, Attempt, Report, audit_inversion, best_psnr

NO_FLOORS = Floors(
    step_images=0, step_patients=0, update_images=0, update_patients=0, steps=0, figure_patients=0, sums_images=0,
    few_images=0, few_rounds=0, largest_share=1.0, changed_patients=0, isolation=False,
)  # fmt: skip
SMALL = ["model=tiny", "stages=tiny", "model.image_side=32", "model.crop=16"]
VIT = [*SMALL, "model.guidance_backbone=vit_tiny_patch16_224", "model.prior_init=own"]


def not_tried(subject: Any, steps: int) -> Attempt:
    return Attempt("matching", len(subject.train), "", None, 0.0, None)


def attacked(settings: list[str], floors: Floors, batch: int, *, matching: bool = False) -> dict[str, Attempt]:
    with pytest.MonkeyPatch.context() as patch:
        if not matching:  # it takes most of the time, and nothing is asked of it
            patch.setattr("fed_diffmic.privacy.inversion.report._matching", not_tried)
        report = audit_inversion(compose(None, settings), floors, batches=[batch], steps=2)
    assert {a.batch for a in report.attempts} == {batch}
    return {a.attack: a for a in report.attempts}


def test_one_image_and_a_vision_transformer_give_the_image_to_the_pixel() -> None:
    attempts = attacked(VIT, NO_FLOORS, 1, matching=True)
    found, matched = attempts["linear"], attempts["matching"]
    assert matched.psnr is not None and matched.psnr < found.psnr and matched.label is None
    assert found.psnr is not None and found.psnr > 60 and found.label is True
    assert found.succeeded and found.chance < 30


def test_the_shipped_floors_refuse_it() -> None:
    floors, *others = (
        compose_site(None, settings).policy.floors for settings in (["policy=standard"], [], ["policy=closed"])
    )
    assert floors == others[0] == others[1] == Floors() and floors.isolation
    found = attacked(VIT, floors, 1)["linear"]
    assert found.psnr is not None and found.psnr > 60  # it would have worked
    assert found.refused == "step_images" and not found.succeeded


def test_made_weights_let_one_image_of_sixteen_through_and_are_found() -> None:
    without, with_floors = attacked(VIT, NO_FLOORS, 16), attacked(VIT, Floors(), 16)
    mask = without["mask"]
    assert mask.psnr is not None and mask.psnr > 40 and mask.label is True and mask.succeeded
    assert without["imprint"].succeeded
    for attack in ("mask", "imprint"):
        assert with_floors[attack].refused == "isolation" and not with_floors[attack].succeeded
    assert with_floors["linear"].refused == "" and not with_floors["linear"].succeeded


def test_the_verdict_follows_from_the_attempts() -> None:
    fair = Attempt("linear", 8, "", 12.0, 11.0, None)
    report = Report([fair, replace(fair, psnr=None), replace(fair, psnr=80.0, refused="step_images")], {})
    assert report.verdict == CHANCE and "AT CHANCE" in report.lines()[-1]
    worse = Report([*report.attempts, replace(fair, psnr=14.1)], {})
    assert worse.verdict == INVERTED and worse.to_json()["verdict"] == INVERTED
    assert Report([replace(fair, psnr=13.9)], {}).verdict == CHANCE


def test_best_psnr_by_hand() -> None:
    real: Any = np.stack([np.full((3, 2, 2), 10.0), np.full((3, 2, 2), 200.0)])
    guesses: Any = np.stack([np.full((3, 2, 2), 100.0), np.full((3, 2, 2), 190.0)])
    psnr, guess, image = best_psnr(guesses, real)
    assert (guess, image) == (1, 1)
    assert psnr == pytest.approx(10 * np.log10(255**2 / 100))
