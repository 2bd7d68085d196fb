"""Virtual sites: notes about them, the pooled site, who is who."""

import pytest

from fed_diffmic.config.compose import compose, to_json
from fed_diffmic.errors import PartitionError
from simulations import sites as sites_module
from simulations.sites import POOLED, build_sites, one_class_notes, open_virtual_site


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
