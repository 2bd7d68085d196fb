"""A site's examples are its manifest's rows, in their splits, with the right pixels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fed_diffmic.data.cache import build_cache
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.site import Examples, SiteData, merge_sites


@pytest.fixture
def opened(tmp_path: Path):
    paths = []
    for i in range(12):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("L", (5, 5), 10 * i).save(paths[-1])
    cache = build_cache(paths, image_side=4, folder=tmp_path / "c", workers=1)
    table = pd.DataFrame(
        {
            "image": paths,
            "label": np.arange(12) % 3,
            "group": [f"g{i // 2}" for i in range(12)],
            "split": (["train"] * 6 + ["val"] * 2 + ["test"] * 4),
            "row": np.arange(12),
            "key": cache.keys,
        }
    )
    return Manifest(table, ("a", "b", "c"), "multiclass", "toy"), cache


def test_splits_labels_and_pixels(opened):
    manifest, cache = opened
    site = SiteData.from_manifest("north", manifest, cache)
    assert [len(x) for x in (site.train, site.val, site.test)] == [6, 2, 4]
    assert site.test.labels.tolist() == [2, 0, 1, 2] and site.val.groups.tolist() == ["g3", "g3"]
    assert site.test.keys.tolist() == [int(k) for k in cache.keys[8:]]
    assert site.test.images(np.array([3, 0]))[:, 0, 0, 0].tolist() == [110, 80]
    part = site.train.subset(site.train.labels == 1)
    assert part.rows.tolist() == [1, 4] and part.images(np.array([1]))[0, 0, 0, 0] == 40


def test_a_row_without_split_is_refused(opened):
    manifest, cache = opened
    table = manifest.table.assign(split="")
    with pytest.raises(ValueError, match="split"):
        SiteData.from_manifest("north", manifest.with_table(table), cache)


def test_multilabel(opened):
    manifest, cache = opened
    table = manifest.table.assign(label=pd.Series([(i % 2, 1) for i in range(12)], dtype=object))
    site = SiteData.from_manifest("n", Manifest(table, ("x", "y"), "multilabel", "toy"), cache)
    assert site.val.labels.dtype == np.float32 and site.val.labels.tolist() == [[0, 1], [1, 1]]


def test_merged_sites_keep_each_images_split_and_do_not_depend_on_the_order(opened):
    manifest, cache = opened
    one = SiteData.from_manifest("a", manifest.subset(np.arange(12) % 2 == 0), cache)
    two = SiteData.from_manifest("b", manifest.subset(np.arange(12) % 2 == 1), cache)
    merged = merge_sites("pooled", [two, one])
    assert merged.name == "pooled"
    for split in ("train", "val", "test"):
        both: Examples = getattr(merged, split)
        assert both.rows.tolist() == getattr(one, split).rows.tolist() + getattr(two, split).rows.tolist()
        assert both.labels.tolist() == (both.rows % 3).tolist()
    with pytest.raises(ValueError, match="no sites"):
        merge_sites("pooled", [])
    other = SiteData("c", "ordinal", one.classes, one.train, one.val, one.test)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_sites("pooled", [one, other])
