"""No group crosses a site or a split, for every registered partitioner and any data set."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st

from fed_diffmic.config.compose import group_options
from fed_diffmic.config.simulation import PartitionConfig
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.splits import split_site
from fed_diffmic.errors import ConfigError, PartitionError
from simulations.partitioners import SAVED, partition, partitioner_names, register_partitioner, site_names


def manifest_of(
    seed: int, groups: int, largest: int, classes: int, task: str, institutions: int, own_split: bool
) -> Manifest:
    """A random data set: groups of 1 to ``largest`` images, labels and institutions that may differ within a group."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rng.integers(1, largest + 1, groups))
    n = len(group)
    if task == "multilabel":
        label = pd.Series([tuple(int(v) for v in row) for row in rng.random((n, classes)) < 0.2], dtype=object)
    else:
        per_group = rng.choice(classes, groups, p=rng.dirichlet(np.full(classes, 0.5)))
        label = pd.Series(np.where(rng.random(n) < 0.1, rng.integers(0, classes, n), per_group[group]))
    site_of = np.where(
        rng.random(n) < 0.05, rng.integers(0, institutions, n), rng.integers(0, institutions, groups)[group]
    )
    split = rng.choice(["train", "test"], groups, p=[0.7, 0.3])[group] if own_split else np.full(n, "")
    table = pd.DataFrame(
        {
            "image": [f"/x/{i}.png" for i in range(n)],
            "label": label,
            "group": [f"p{g}" for g in group],
            "institution": [f"h{s}" for s in site_of],
            "split": split.astype(object),
            "key": rng.permutation(n).astype(np.uint64) + np.uint64(1),
        }
    )
    return Manifest(table, tuple("abcdefghijkl"[:classes]), task, "random")


data_sets = st.builds(
    manifest_of,
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(12, 120),
    largest=st.sampled_from([1, 2, 6, 25]),
    classes=st.integers(2, 8),
    task=st.sampled_from(["multiclass", "ordinal", "multilabel"]),
    institutions=st.integers(2, 4),
    own_split=st.booleans(),
)


def assert_no_group_crosses(manifest: Manifest, parts: dict[str, Manifest], seed: int) -> None:
    assert list(parts) == sorted(parts)
    everything = sorted(image for part in parts.values() for image in part.table["image"])
    assert everything == sorted(manifest.table["image"])  # every image once
    sites_of_group: dict[str, set[str]] = {}
    for name, part in parts.items():
        for group in part.table["group"]:
            sites_of_group.setdefault(group, set()).add(name)
        try:
            table = split_site(part, name, seed, 0.15, 0.2).table
        except PartitionError:
            assert (part.table["split"] != "").any()  # a given split may leave a site without training or test
            event("given split unusable at a site")
            continue
        assert set(table["split"]) == {"train", "val", "test"}
        assert (table.groupby("group")["split"].nunique() == 1).all()
        assert table["image"].tolist() == part.table["image"].tolist()
    assert all(len(sites) == 1 for sites in sites_of_group.values())


@pytest.mark.parametrize("name", partitioner_names())
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=data_sets, sites=st.integers(1, 5), alpha=st.sampled_from([0.1, 0.5, 5.0]), seed=st.integers(0, 2**31 - 1))
def test_no_group_crosses_a_site_or_a_split(name, data, sites, alpha, seed):
    cfg = PartitionConfig(name=name, sites=sites, alpha=alpha, min_images=3)
    try:
        parts = partition(data, cfg, seed)
    except PartitionError:
        reject()
    assert len(parts) == (data.table["institution"].nunique() if name == "institution" else sites)
    assert all(len(part) >= cfg.min_images for part in parts.values())
    assert_no_group_crosses(data, parts, seed)


@pytest.mark.parametrize("name", partitioner_names())
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=data_sets, order=st.integers(0, 2**32 - 1), seed=st.integers(0, 1000))
def test_the_order_of_the_table_does_not_matter(name, data, order, seed):
    cfg = PartitionConfig(name=name, sites=3, alpha=2.0, min_images=3)
    shuffled = data.subset(np.random.default_rng(order).permutation(len(data)))
    try:
        parts = partition(data, cfg, seed)
    except PartitionError:
        reject()
    again = partition(shuffled, cfg, seed)
    assert list(parts) == list(again)
    for site in parts:
        pd.testing.assert_frame_equal(parts[site].table, again[site].table)


@pytest.mark.parametrize("name", partitioner_names())
def test_too_few_images_at_a_site_is_an_error_that_says_which(name):
    data = manifest_of(0, 40, 2, 3, "multiclass", 3, own_split=False)
    with pytest.raises(PartitionError, match=r"(site-\d|h\d) has \d+ image\(s\) in \d+ group\(s\).*needs 30 images"):
        partition(data, PartitionConfig(name=name, sites=4, min_images=30), 0)
    with pytest.raises(PartitionError, match="in 3 groups"):
        partition(data.subset(np.arange(8)), PartitionConfig(name=name, sites=4, min_images=1), 0)


def test_more_sites_than_groups_names_the_empty_ones():
    data = manifest_of(0, 12, 1, 2, "multiclass", 2, own_split=False)
    with pytest.raises(PartitionError, match=r"site-20 has 0 image"):
        partition(data, PartitionConfig(name="iid", sites=30, min_images=1), 0)


def test_the_seed_matters_and_repeats():
    data = manifest_of(1, 100, 3, 4, "multiclass", 3, own_split=False)
    for name in ("iid", "dirichlet"):
        cfg = PartitionConfig(name=name, sites=3, alpha=1.0, min_images=3)
        first, again, other = (
            {s: p.table["image"].tolist() for s, p in partition(data, cfg, seed).items()} for seed in (0, 0, 1)
        )
        assert first == again != other


def test_names_are_in_order():
    assert site_names(3) == ["site-1", "site-2", "site-3"]
    assert site_names(12)[:2] == ["site-01", "site-02"] and site_names(12) == sorted(site_names(12))


def test_the_registry_is_loud():
    with pytest.raises(ValueError, match="built in and cannot be registered twice"):
        register_partitioner("iid")(lambda *a: None)
    with pytest.raises(ConfigError, match="partition=iidd"):
        partition(manifest_of(0, 12, 1, 2, "multiclass", 2, False), PartitionConfig(name="iidd"), 0)


def test_every_choice_of_the_configuration_is_registered():
    assert set(group_options("partition")) == {*partitioner_names(), SAVED}
    assert len(partitioner_names()) == 6
