"""Pathological, quantity and saved partitions, feature shift, and the number for how unlike sites are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import PartitionConfig
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import ConfigError, PartitionError
from simulations.partitioners import partition
from simulations.sites import build_sites, heterogeneity


def manifest_of(classes: int = 5, groups: int = 200, images: int = 2) -> Manifest:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(groups), images)
    label = rng.integers(0, classes, groups)[group]
    table = pd.DataFrame(
        {
            "image": [f"/x/{i}.png" for i in range(len(group))],
            "label": label,
            "group": [f"p{g}" for g in group],
            "institution": "",
            "split": "",
            "key": np.arange(1, len(group) + 1, dtype=np.uint64),
        }
    )
    return Manifest(table, tuple("abcdefgh"[:classes]), "multiclass", "drawn")


@pytest.mark.parametrize(("sites", "each"), [(5, 2), (4, 3), (10, 1), (3, 5), (3, 9)])
def test_pathological_sites_hold_so_many_classes_and_no_class_is_lost(sites, each):
    data = manifest_of()
    parts = partition(data, PartitionConfig(name="pathological", sites=sites, classes_per_site=each, min_images=3), 0)
    held = {name: set(part.table["label"]) for name, part in parts.items()}
    assert all(len(classes) == min(each, 5) for classes in held.values())
    assert set().union(*held.values()) == set(range(5))
    holders = [sum(c in classes for classes in held.values()) for c in range(5)]
    assert max(holders) - min(holders) <= 1


def test_pathological_needs_room_for_every_class():
    with pytest.raises(PartitionError, match="2 sites of 2 class\\(es\\) hold 4 of the 5 classes"):
        partition(manifest_of(), PartitionConfig(name="pathological", sites=2, classes_per_site=2), 0)


def test_zipf_sizes_by_hand():
    """Shares 1, 1/2, 1/3, 1/4 of 25/12, to within half a group at each cut."""
    cfg = PartitionConfig(name="quantity", skew="zipf", spread=1.0, sites=4, min_images=3)
    sizes = np.array([len(part) for part in partition(manifest_of(), cfg, 0).values()])
    np.testing.assert_allclose(sizes, 400 * np.array([1, 1 / 2, 1 / 3, 1 / 4]) * 12 / 25, atol=2)


def test_spread_makes_sizes_unlike_and_labels_stay_alike():
    def spread(value):
        cfg = PartitionConfig(name="quantity", spread=value, sites=4, min_images=6)
        found = [partition(manifest_of(), cfg, seed) for seed in range(8)]
        return np.mean([np.std([len(p) for p in parts.values()]) for parts in found])

    assert spread(0.0) <= 2 < 20 < spread(1.0)
    cfg = PartitionConfig(name="quantity", spread=0.5, sites=4, min_images=40)
    alike = {name: p.class_counts().tolist() for name, p in partition(manifest_of(), cfg, 0).items()}
    cfg = PartitionConfig(name="pathological", sites=5, classes_per_site=2, min_images=6)
    unlike = {name: p.class_counts().tolist() for name, p in partition(manifest_of(), cfg, 0).items()}
    assert heterogeneity(alike) < 0.1 < 0.5 < heterogeneity(unlike)


def test_heterogeneity_by_hand():
    assert heterogeneity({"a": [10, 0], "b": [0, 3]}) == pytest.approx(1.0)
    assert heterogeneity({"a": [10, 20], "b": [1, 2], "none": [0, 0]}) == pytest.approx(0.0, abs=1e-12)
    # P = (1, 0), Q = (1/2, 1/2), M = (3/4, 1/4): JS = (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2
    by_hand = (np.log2(4 / 3) + 0.5 * (np.log2(2 / 3) + np.log2(2))) / 2
    assert heterogeneity({"a": [5, 0], "b": [4, 4]}) == pytest.approx(by_hand)
    assert heterogeneity({"a": [1, 2]}) is None


PHANTOMS = ["dataset.phantom_images=60", "model.image_side=32", "partition.min_images=3", "partition.sites=3"]


def settings(folder: Path, *more: str):
    where = [f"dataset.root={folder / 'phantoms'}", f"dataset.cache_dir={folder / 'cache'}"]
    return compose(None, [*PHANTOMS, *where, *more])


def test_a_saved_partition_gives_the_same_sites_and_splits(tmp_path):
    first = build_sites(
        settings(tmp_path, "partition=dirichlet", "partition.sites=3", "partition.min_images=3"), tmp_path / "1"
    )
    saved = settings(tmp_path, "partition=saved", f"partition.file={tmp_path / '1' / 'partition.csv'}", "seed=77")
    again = build_sites(saved, tmp_path / "2")
    assert first.partition == again.partition and list(first.sites) == list(again.sites)
    for name, data in first.sites.items():
        for split in ("train", "val", "test"):
            one, two = getattr(data, split), getattr(again.sites[name], split)
            assert sorted(one.keys.tolist()) == sorted(two.keys.tolist())


def test_a_saved_partition_that_is_missing_torn_or_of_other_images(tmp_path):
    with pytest.raises(ConfigError, match="partition.file=null"):
        compose(None, ["partition=saved"])
    with pytest.raises(ConfigError, match="nothing unless partition=saved"):
        compose(None, [f"partition.file={tmp_path / 'x'}"])
    build_sites(settings(tmp_path), tmp_path / "1")
    path = tmp_path / "1" / "partition.csv"
    torn = tmp_path / "torn.csv"
    torn.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PartitionError, match="not a whole partition file"):
        build_sites(settings(tmp_path, "partition=saved", f"partition.file={torn}"), tmp_path / "2")
    other = settings(tmp_path / "other", "dataset.phantom_images=40", "partition=saved", f"partition.file={path}")
    with pytest.raises(PartitionError, match="a partition of other images"):
        build_sites(other, tmp_path / "3")


def test_feature_shift_keeps_who_is_where_and_changes_what_is_seen(tmp_path):
    plain = build_sites(
        settings(tmp_path, "partition=iid", "partition.sites=3", "partition.min_images=3"), tmp_path / "1"
    )
    shifted = settings(tmp_path, "partition=feature", "partition.sites=3", "partition.min_images=3")
    first, again = build_sites(shifted, tmp_path / "2"), build_sites(shifted, tmp_path / "3")
    pooled = first.get("pooled")
    for name, data in first.sites.items():
        index = np.arange(len(data.train))
        assert (data.train.images(index) == again.sites[name].train.images(index)).all()
        assert data.train.keys.tolist() == again.sites[name].train.keys.tolist()
        raw = data.train.cache._cache.images(data.train.rows)
        assert (data.train.images(index) != raw).float().mean() > 0.5
        where = np.flatnonzero(np.isin(pooled.train.keys, data.train.keys))
        assert len(where) == len(index)  # the pooled baseline sees each site's images as the site does
        np.testing.assert_array_equal(pooled.train.images(where), data.train.images(index))
    assert {n: len(d.train) for n, d in plain.sites.items()}.keys() == {
        n: len(d.train) for n, d in first.sites.items()
    }.keys()
