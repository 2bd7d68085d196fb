"""The site's data as preflight sees them: planted mistakes are named by kind and number, never by file or patient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.preflight.credentials import read_kit
from client.preflight.images import FINDINGS, check_groups, check_labels, check_outliers, open_images

SIDE = 64


def look(site, modality="none"):
    Path(site.site.folder).mkdir(mode=0o700, exist_ok=True)
    checks, images = open_images(site, SIDE)
    if images is not None:
        manifest = images.opened.manifest
        checks += [*check_labels(site, manifest, read_kit(site.coordinator)), check_groups(manifest)]
        checks += check_outliers(images, modality)
    assert "JaneDoe" not in str(checks)
    return {check.name: check for check in checks}


def edit(site, number, change):
    path = Path(site.dataset.root) / f"JaneDoe{number}.png"
    Image.fromarray(np.ascontiguousarray(change(np.asarray(Image.open(path))))).save(path)


def table(site, change):
    path = Path(site.dataset.root) / "manifest.csv"
    path.write_text(change(path.read_text()))


def test_data_that_are_well(site):
    checks = look(site)
    assert {name: c.level for name, c in checks.items()} == {
        "data.read": "passed",
        "data.split": "warning",  # 40 images for training are few
        "data.labels": "passed",
        "data.groups": "passed",
        "data.orientation": "passed",
        "data.intensity": "passed",
    }
    assert checks["data.labels"].facts["counts"] == {"benign": 30, "malignant": 30}
    assert (Path(site.site.folder) / FINDINGS).stat().st_mode & 0o777 == 0o600


def test_planted_images_are_found_and_named_in_the_sites_file_only(site):
    edit(site, 4, lambda pixels: np.rot90(pixels, 2))
    edit(site, 9, lambda pixels: np.rot90(pixels, -1))
    edit(site, 20, lambda pixels: 255 - pixels)
    edit(site, 30, np.zeros_like)
    checks = look(site)
    assert checks["data.orientation"].facts["turned"] == 2
    assert checks["data.orientation"].level == checks["data.intensity"].level == "warning"
    assert "1 look like the others only when turned by 180 degrees" in checks["data.orientation"].cause
    assert "black and white" in checks["data.intensity"].cause and "one grey level" in checks["data.intensity"].cause
    text = (Path(site.site.folder) / FINDINGS).read_text()
    named = {f"JaneDoe{number}.png" for number in (4, 9, 20, 30)}
    assert {line.split(",")[5].rsplit("/", 1)[-1] for line in text.splitlines()[1:]} == named


def test_a_modality_without_up(site):
    check = look(site, modality="dermoscopy")["data.orientation"]
    assert check.level == "passed" and "not checked" in check.cause


def test_few_images_say_so(site):
    table(site, lambda text: "\n".join(text.splitlines()[:31]) + "\n")
    checks = look(site)
    assert checks["data.orientation"].level == checks["data.intensity"].level == "warning"


def test_a_label_that_is_none_of_the_consortiums(site):
    table(site, lambda text: text.replace("JaneDoe7.png,malignant", "JaneDoe7.png,malignnat"))
    check = look(site)["data.unknown-label"]
    assert (check.level, check.exit_code) == ("failed", 3)


@pytest.mark.parametrize("changed", [{"classes": ["malignant", "benign"]}, {"task": "ordinal"}])
def test_a_list_that_is_not_the_consortiums(site, kit_of, changed):
    kit_of(**changed)
    check = look(site)["data.labels"]
    assert (check.level, check.exit_code) == ("failed", 3)


def test_no_list_to_compare_with(site, kit_of):
    kit_of(classes=None, task=None)
    assert look(site)["data.labels"].level == "passed"
    found = replace(site, dataset=replace(site.dataset, classes=None))
    assert look(found)["data.labels"].level == "warning"


def test_patients_that_are_not_known(site):
    table(site, lambda text: "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()) + "\n")
    assert look(site)["data.groups"].level == "warning"


def test_damaged_and_duplicate_images(site):
    root = Path(site.dataset.root)
    (root / "JaneDoe3.png").write_bytes(b"")
    check = look(site)["data.unreadable-image"]
    assert (check.level, check.exit_code, check.facts["count"]) == ("failed", 3, 1)
    assert FINDINGS in check.remedy
    (root / "JaneDoe3.png").write_bytes((root / "JaneDoe6.png").read_bytes())
    assert "data.contradicting-labels" in look(site) or "data.duplicate-images" in look(site)


def test_no_table(site):
    (Path(site.dataset.root) / "manifest.csv").unlink()
    checks = look(site)
    assert [c.level for c in checks.values()] == ["failed"]
