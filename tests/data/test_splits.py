"""A site's splits: whole groups, near the shares asked, stratified, its own split column first."""

import numpy as np
import pandas as pd
import pytest

from fed_diffmic.data import splits
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.splits import split_site
from fed_diffmic.errors import PartitionError


def data_set(labels, groups=None, split=None, task="multiclass", classes=3) -> Manifest:
    n = len(labels)
    table = pd.DataFrame({"image": [f"/x/{i}" for i in range(n)]})
    table["label"] = pd.Series(list(labels), dtype=object if task == "multilabel" else None)
    table["group"] = [str(g) for g in (groups if groups is not None else range(n))]
    if split is not None:
        table["split"] = list(split)
    return Manifest(table, tuple("abcdefgh"[:classes]), task, "toy")


def shares(manifest: Manifest) -> dict[str, float]:
    return manifest.table["split"].value_counts(normalize=True).to_dict()


def run(manifest: Manifest, site="s", seed=0, val=0.15, test=0.2) -> Manifest:
    return split_site(manifest, site, seed, val, test)


def test_shares_and_strata():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 800, p=[0.8, 0.17, 0.03])
    done = run(data_set(labels))
    got = shares(done)
    assert got["test"] == pytest.approx(0.2, abs=0.005) and got["val"] == pytest.approx(0.15, abs=0.005)
    for label in range(3):
        part = done.subset(labels == label)
        assert shares(part)["test"] == pytest.approx(0.2, abs=0.04)
        assert shares(part)["val"] == pytest.approx(0.15, abs=0.04)


def test_groups_of_very_different_sizes_still_come_near_the_shares():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(90), rng.geometric(0.15, 90))
    done = run(data_set(rng.integers(0, 3, len(groups)), groups))
    assert shares(done)["test"] == pytest.approx(0.2, abs=0.02) and shares(done)["val"] == pytest.approx(0.15, abs=0.02)
    assert (done.table.groupby("group")["split"].nunique() == 1).all()


def test_several_labels_are_stratified_by_the_rarest():
    rng = np.random.default_rng(2)
    labels = rng.random((900, 4)) < [0.6, 0.3, 0.1, 0.03]
    done = run(data_set([tuple(map(int, row)) for row in labels], task="multilabel", classes=4))
    for label in range(4):
        got = shares(done.subset(labels[:, label]))
        assert got["test"] == pytest.approx(0.2, abs=0.06) and got["val"] == pytest.approx(0.15, abs=0.06)


def test_a_class_with_one_group_is_trained_on():
    for seed in range(10):
        done = run(data_set([2] + [i % 2 for i in range(60)]), seed=seed)
        assert done.table["split"][0] == "train"


def test_the_seed_and_the_site_matter_and_the_order_does_not():
    data = data_set(np.arange(100) % 3)
    first = run(data).table["split"].tolist()
    assert run(data).table["split"].tolist() == first
    assert run(data, seed=1).table["split"].tolist() != first
    assert run(data, site="t").table["split"].tolist() != first
    order = np.random.default_rng(0).permutation(100)
    assert run(data.subset(order)).table["split"].tolist() == [first[i] for i in order]


@pytest.mark.parametrize("change", [{"site": "t"}, {"seed": 1}])
def test_each_cut_is_the_sites_own_and_the_seeds(change, monkeypatch):
    """Test and validation by themselves: that splits differ would be true while one of the two cuts did."""
    cuts = []
    monkeypatch.setattr(splits, "_cut", lambda groups, among, *rest, **_: cuts.append(rest[1]) or among[:2])
    data = data_set(np.arange(30) % 3)
    given = data_set([0] * 20, split=["train"] * 16 + ["test"] * 4)
    for manifest in (data, given):
        run(manifest)
        run(manifest, **change)
    assert len(cuts) == 6
    (test, val, other_test, other_val), (cut, other_cut) = cuts[:4], cuts[4:]
    assert test != other_test and val != other_val and cut != other_cut
    assert test != val, "validation is no copy of the draw for test"


@pytest.mark.parametrize("n", [3, 4, 5, 7])
def test_very_small_sites(n):
    done = run(data_set([0] * n))
    assert set(done.table["split"]) == {"train", "val", "test"}


def test_too_few_groups():
    with pytest.raises(PartitionError, match=r"site north has 9 image\(s\) in 2 group\(s\)"):
        run(data_set([0] * 9, ["a"] * 5 + ["b"] * 4), site="north")


def test_an_own_split_wins():
    split = ["train"] * 5 + ["val"] * 3 + ["test"] * 2
    assert run(data_set([0] * 10, split=split)).table["split"].tolist() == split


def test_validation_is_cut_from_an_own_training_set_by_group():
    groups = [i // 2 for i in range(200)]
    split = ["train"] * 160 + ["test"] * 40
    done = run(data_set([(i // 2) % 3 for i in range(200)], groups, split))
    assert (done.table["split"][160:] == "test").all()
    assert (done.table.groupby("group")["split"].nunique() == 1).all()
    assert (done.table["split"] == "val").sum() == pytest.approx(160 * 0.15 / 0.8, abs=2)


def test_groups_on_both_sides_of_a_published_split_stay_out_of_validation():
    groups = [i // 2 for i in range(120)]
    split = ["train", "test"] * 30 + ["train"] * 60  # the first thirty lesions are on both sides
    done = run(data_set([0, 1] * 60, groups, split)).table
    assert (done["split"][1:60:2] == "test").all()  # what was asked for is done
    val = set(done["group"][done["split"] == "val"])
    assert val and not val & set(done["group"][done["split"] != "val"])
    assert len(val) * 2 == pytest.approx(90 * 0.1875, abs=2)


def test_when_every_group_is_on_both_sides_validation_is_still_apart_from_training():
    groups = [i // 2 for i in range(40)]
    done = run(data_set([0, 1] * 20, groups, ["train", "test"] * 20)).table
    val, train = (set(done["group"][done["split"] == s]) for s in ("val", "train"))
    assert val and train and not val & train


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (["train"] * 9 + [""], r"site s: 1 of 10 images have no split"),
        (["train"] * 10, "leaves it 10 training, 0 validation and 0 test"),
        (["test"] * 8 + ["val"] * 2, "leaves it 0 training, 2 validation and 8 test"),
        (["train"] + ["test"] * 9, r"1 training image\(s\) in 1 group\(s\)"),
    ],
)
def test_an_own_split_that_cannot_be_used(split, message):
    with pytest.raises(PartitionError, match=message):
        run(data_set([0] * 10, split=split))


def test_groups_of_a_manifest():
    data = data_set([(1, 0), (1, 1), (0, 0), (1, 0)], ["b", "a", "c", "b"], task="multilabel", classes=2)
    groups = Groups.of(data)
    assert groups.names.tolist() == ["a", "b", "c"] and groups.of_row.tolist() == [1, 0, 2, 1]
    assert groups.sizes.tolist() == [1, 2, 1] and groups.class_counts.tolist() == [[1, 1], [2, 0], [0, 0]]
    assert groups.strata.tolist() == [1, 0, 2]  # the rarer label; the only label; no label
