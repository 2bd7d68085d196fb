"""Virtual sites: notes about them, the pooled site, who is who."""

import numpy as np
import pytest

from fed_diffmic.config.compose import compose, to_json
from fed_diffmic.errors import PartitionError
from simulations import sites as sites_module
from simulations.sites import (
    POOLED,
    build_sites,
    heterogeneity,
    is_away,
    one_class_notes,
    open_virtual_site,
    pace_of,
)


def small(tmp_path, *more):
    return compose(
        None,
        [
            "dataset.modality=ultrasound",
            "dataset.phantom_images=60",
            f"dataset.cache_dir={tmp_path / 'cache'}",
            f"run.dir={tmp_path / 'run'}",
            "partition.sites=3",
            "partition.min_images=5",
            "model.image_side=32",
            *more,
        ],
    )


class Context:
    def __init__(self, node_config, run_config):
        self.node_config = node_config
        self.run_config = run_config


def test_one_class_sites_are_said():
    notes = one_class_notes({"a": [0, 7], "b": [3, 4]}, ["ill", "well"], "multiclass")
    assert len(notes) == 1 and "site a" in notes[0] and "well" in notes[0]
    assert one_class_notes({"a": [0, 7]}, ["x", "y"], "multilabel") == []
    assert len(one_class_notes({"a": [0, 0]}, ["x", "y"], "multilabel")) == 1


def test_the_pooled_site_is_the_union_with_each_image_in_its_own_split(tmp_path):
    sites = build_sites(small(tmp_path), tmp_path / "run")
    pooled = sites.get(POOLED)
    for split in ("train", "val", "test"):
        parts = [set(getattr(s, split).keys.tolist()) for s in sites.sites.values()]
        assert set(getattr(pooled, split).keys.tolist()) == set().union(*parts)
        assert len(getattr(pooled, split)) == sum(len(p) for p in parts)


def test_an_institution_named_like_the_baseline_is_refused(tmp_path, monkeypatch):
    real = sites_module.partition
    monkeypatch.setattr(sites_module, "partition", lambda *a: {POOLED: next(iter(real(*a).values()))})
    with pytest.raises(PartitionError, match="pooled"):
        build_sites(small(tmp_path), tmp_path / "run")


def test_a_node_finds_its_site_by_name_or_by_number(tmp_path):
    config = small(tmp_path)
    run_config = {"config-json": to_json(config), "run-dir": str(tmp_path / "run")}
    assert open_virtual_site(Context({"site": "site-2"}, run_config), None, {}).name == "site-2"
    assert open_virtual_site(Context({"partition-id": 2}, run_config), None, {}).name == "site-3"
    only = {**run_config, "sites": "site-3|site-1"}
    assert open_virtual_site(Context({"partition-id": 1}, only), None, {}).name == "site-1"


def test_phantoms_of_two_seeds_share_a_folder_and_differ_in_their_partition(tmp_path):
    root = f"dataset.root={tmp_path / 'phantoms'}"
    first = build_sites(small(tmp_path, root), tmp_path / "a")
    second = build_sites(small(tmp_path, root, "seed=1"), tmp_path / "b")
    keys = [set(s.sites["site-1"].train.keys.tolist()) for s in (first, second)]
    assert keys[0] != keys[1]


def splits_of(sites, name):
    return {split: sorted(getattr(sites.sites[name], split).keys.tolist()) for split in ("train", "val", "test")}


def test_a_sites_split_is_its_own_whoever_else_is_there(tmp_path, monkeypatch):
    """A real site draws it alone: neither its place among others nor their number may matter, its name does."""
    root = f"dataset.root={tmp_path / 'phantoms'}"
    whole = build_sites(small(tmp_path, root), tmp_path / "a")
    real = sites_module.partition

    def alone(*given):
        return {"site-3": real(*given)["site-3"]}

    monkeypatch.setattr(sites_module, "partition", alone)
    assert splits_of(build_sites(small(tmp_path, root), tmp_path / "b"), "site-3") == splits_of(whole, "site-3")
    monkeypatch.setattr(sites_module, "partition", lambda *given: {"another": real(*given)["site-3"]})
    renamed = splits_of(build_sites(small(tmp_path, root), tmp_path / "c"), "another")
    assert renamed["test"] != splits_of(whole, "site-3")["test"]
    together = [
        sorted(key for keys in found.values() for key in keys) for found in (renamed, splits_of(whole, "site-3"))
    ]
    assert together[0] == together[1]
    counts = whole.class_counts["site-3"]
    assert counts == np.bincount(whole.sites["site-3"].train.labels, minlength=len(counts)).tolist()


def test_shares_of_validation_and_test_are_not_exchanged(tmp_path):
    sites = build_sites(small(tmp_path, "partition.val_fraction=0.1", "partition.test_fraction=0.4"), tmp_path / "run")
    for data in sites.sites.values():
        assert len(data.test) > 2 * len(data.val)


def test_who_is_away_and_how_slow_is_of_the_site_the_stage_and_the_round(tmp_path):
    named = small(tmp_path, "run.quorum=0.5", "conditions.absent=[site-1:2-3]", "conditions.slow=[site-2:4]")
    assert [is_away(named, "site-1", "plain", r) for r in (1, 2, 3, 4)] == [False, True, True, False]
    assert not is_away(named, "site-2", "plain", 2)
    assert (pace_of(named, "site-2"), pace_of(named, "site-1")) == (0.25, 1.0)
    often = small(tmp_path, "run.quorum=0.5", "conditions.dropout=0.5")

    def away(site="site-1", stage="plain", config=often):
        return [is_away(config, site, stage, r) for r in range(1, 41)]

    assert away() == away() and 8 < sum(away()) < 32
    assert len({tuple(found) for found in (away(), away("site-2"), away(stage="guidance"))}) == 3
    assert away(config=small(tmp_path, "run.quorum=0.5", "conditions.dropout=0.5", "seed=1")) != away()
    assert not any(away(POOLED)) and all(away(config=small(tmp_path, "run.quorum=0.5", "conditions.dropout=0.999")))


def test_heterogeneity_is_zero_for_the_same_shares_and_one_for_no_class_in_common():
    assert heterogeneity({"a": [3, 1], "b": [6, 2]}) == pytest.approx(0.0)
    assert heterogeneity({"a": [3, 0], "b": [0, 5]}) == pytest.approx(1.0)
    assert heterogeneity({"a": [3, 0], "b": [0, 5], "c": [7, 0]}) == pytest.approx(2 / 3)  # of three pairs
    assert heterogeneity({"a": [3, 0], "b": [0, 0]}) is None
