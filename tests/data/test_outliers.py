"""Turned and inverted images among images that have a common orientation, and silence where there is none."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.outliers import LEAST_IMAGES, compare_views, find_outliers, report_outliers

N, SIDE = 90, 48


def scenes(count=N, seed=0, upright=True):
    """Bright above, dark below, with a disc at a random place; ``(n, 3, H, H)`` uint8. Or the same turned at random."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pictures = []
    for _ in range(count):
        cx, cy = rng.uniform(0.25, 0.75, 2)
        grey = 190 - 90 * y + 25 * ((x - cx) ** 2 + (y - cy) ** 2 < 0.03) + rng.normal(0, 6, (SIDE, SIDE))
        grey[y > 0.9] = 20
        pictures.append(grey if upright else np.rot90(grey, rng.integers(4)))
    tones = np.clip(np.stack(pictures), 0, 255).astype(np.uint8)
    return np.repeat(tones[:, None], 3, axis=1)


def look(pixels, **keywords):
    tensor = torch.from_numpy(pixels.copy())
    return find_outliers(lambda rows: tensor[torch.from_numpy(rows)], np.arange(len(pixels)), **keywords)


def test_planted_images_are_found_with_their_angle_and_no_other_is_accused():
    pixels = scenes()
    pixels[3] = np.rot90(pixels[3], -1, axes=(1, 2))
    pixels[17] = np.rot90(pixels[17], 2, axes=(1, 2))
    pixels[40] = np.rot90(pixels[40], -3, axes=(1, 2))
    pixels[5] = 255 - pixels[5]
    pixels[6] = 255 - np.rot90(pixels[6], 2, axes=(1, 2))
    found = look(pixels)
    assert found.orientation.checked and found.inversion.checked
    assert np.flatnonzero(found.turned).tolist() == [3, 6, 17, 40]
    assert found.orientation.best[found.turned].tolist() == [1, 2, 2, 3]
    assert np.flatnonzero(found.inversion.best).tolist() == [5, 6]
    assert min(found.orientation.recall) > 0.9


def test_where_images_have_no_common_orientation_none_is_accused():
    found = look(scenes(upright=False))
    assert not found.orientation.checked
    assert found.orientation.agreement < 0.8
    assert not found.turned.any()


def test_a_modality_without_up_is_not_compared():
    assert look(scenes(), modality="dermoscopy").orientation is None
    assert not look(scenes(), modality="dermoscopy").turned.any()


def test_too_few_images_say_nothing():
    assert look(scenes(LEAST_IMAGES - 1)) is None
    assert look(scenes(LEAST_IMAGES)) is not None


def test_flat_and_far_images_are_named_for_what_they_are():
    pixels = scenes()
    pixels[1], pixels[2] = 0, np.clip(pixels[2].astype(int) // 8, 0, 255)
    found = look(pixels)
    assert np.flatnonzero(found.flat).tolist() == [1]
    assert np.flatnonzero(found.unusual).tolist() == [2]
    assert found.orientation.best[1] == 0
    assert found.inversion.best[1] == 0


def test_of_many_images_a_sample_is_looked_at_the_same_each_time():
    pixels = scenes(120)
    first, second = look(pixels, most=60), look(pixels, most=60)
    assert len(first.position) == 60
    assert np.array_equal(first.position, second.position)
    assert np.array_equal(first.orientation.best, second.orientation.best)
    assert not np.array_equal(first.position, look(pixels, most=60, seed=1).position)


def test_many_doubtful_images_make_the_comparison_void():
    rng = np.random.default_rng(0)
    own, other = rng.normal(0.35, 1, (400, 6)), rng.normal(-0.35, 1, (400, 6))
    assert not compare_views([own, other], 0).checked
    assert compare_views([own + 3, other - 3], 0).checked


def test_names_go_to_the_findings_file_alone(tmp_path):
    class Table:
        source = "manifest.csv"
        table = pd.DataFrame({"line": range(2, N + 2), "image": [f"JaneDoe{i}.png" for i in range(N)]})

    pixels = scenes()
    pixels[7] = np.rot90(pixels[7], -1, axes=(1, 2))
    pixels[8] = 255 - pixels[8]
    findings = Findings(tmp_path / "findings.csv")
    report_outliers(look(pixels), Table, findings)
    assert [item.code for item in findings] == ["turned-90", "inverted"]
    assert [item.rows for item in findings] == [(9,), (10,)]
    assert "JaneDoe" not in "".join(findings.lines())
    findings.write()
    text = (tmp_path / "findings.csv").read_text()
    assert "JaneDoe7.png" in text and "JaneDoe8.png" in text and "JaneDoe9.png" not in text
    assert (tmp_path / "findings.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "modality"),
    [("chestxray14", "chest"), ("ultrasound_busi", "ultrasound"), ("fundus_idrid", "fundus"), ("ham10000", "none")],
)
def test_real_images(shared, name, modality):
    paths = sorted((shared / "data" / name / "images").iterdir())[:: 2 if name == "fundus_idrid" else 3][:120]
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB").resize((64, 64))) for p in paths]).transpose(0, 3, 1, 2)
    pixels = pixels.copy()
    turned = dict(zip(range(0, 60, 10), [1, 2, 3, 1, 2, 3], strict=True))
    inverted = set(range(5, 60, 10))
    for i, quarters in turned.items():
        pixels[i] = np.rot90(pixels[i], -quarters, axes=(1, 2))
    for i in inverted:
        pixels[i] = 255 - pixels[i]
    found = look(pixels, modality=modality)
    accused = set(np.flatnonzero(found.inversion.best).tolist())
    assert len(accused & inverted) >= 0.8 * len(inverted)
    assert len(accused - inverted) <= 0.05 * len(pixels)
    if name == "ham10000":
        assert not found.orientation.checked and not found.turned.any()
        return
    right = sum(found.orientation.best[i] == quarters for i, quarters in turned.items())
    assert right >= 0.8 * len(turned)
    assert len(set(np.flatnonzero(found.turned).tolist()) - set(turned)) <= 0.05 * len(pixels)
