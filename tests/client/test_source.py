"""A real site's data: opened once at each size, split by its own seed and name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from client.source import FINDINGS, SiteSource
from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.errors import DataError
from tests.toy import toy_spec


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    images = tmp_path / "images"
    images.mkdir()
    rows = ["image,label,patient_id"]
    for i in range(24):
        Image.new("RGB", (40, 40), (i * 10, 5 * i, 255 - i)).save(images / f"{i}.png")
        rows.append(f"{i}.png,{'benign' if i % 2 else 'malignant'},p{i // 2}")
    (images / "manifest.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "site").mkdir()
    site = SiteGroup(name="one", folder=str(tmp_path / "site"))
    return SiteConfig(site=site, dataset=DatasetConfig(name="table", root=str(images)))


def keys(source: SiteSource) -> dict[str, list[int]]:
    data = source(None, toy_spec(), {})
    return {split: getattr(data, split).keys.tolist() for split in ("train", "val", "test")}


def test_images_are_opened_once_and_split_by_seed_and_name(config: SiteConfig) -> None:
    source = SiteSource(config)
    first = source(None, toy_spec(), {})
    assert source(None, toy_spec(), {}) is first
    assert (first.name, first.classes, first.task) == ("one", ("benign", "malignant"), "multiclass")
    assert keys(source) == keys(SiteSource(config))
    assert keys(source) != keys(SiteSource(replace(config, site=replace(config.site, split_seed=1))))
    assert keys(source) != keys(SiteSource(replace(config, site=replace(config.site, name="two"))))
    folder = Path(str(config.site.folder))
    assert (folder / "cache").is_dir()
    assert (folder / FINDINGS).stat().st_mode & 0o777 == 0o600


def test_classes_are_known_before_any_image_is_decoded(config: SiteConfig) -> None:
    data = SiteSource(config)(None, None, {})
    assert (data.classes, len(data.train)) == (("benign", "malignant"), 0)
    assert not (Path(str(config.site.folder)) / "cache").exists()


def test_what_is_wrong_with_the_data_names_no_file(config: SiteConfig) -> None:
    (Path(str(config.dataset.root)) / "3.png").write_bytes(b"torn")
    with pytest.raises(DataError) as failed:
        SiteSource(config)(None, toy_spec(), {})
    assert "3.png" not in str(failed.value)
    assert "3.png" in (Path(str(config.site.folder)) / FINDINGS).read_text()
