"""Cross-validation inside a site: every image is a test image once, whole groups, the same site whatever the fold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from fed_diffmic.data.groups import Groups
from fed_diffmic.data.splits import Fold, fold_of_groups, split_site
from fed_diffmic.errors import PartitionError
from tests.data.test_splits import data_set


@st.composite
def cohorts(draw):
    """A site's images with groups of unlike sizes, of one label or several, and a number of folds."""
    several = draw(st.booleans())
    folds = draw(st.integers(2, 6))
    sizes = draw(st.lists(st.integers(1, 7), min_size=max(folds, 4), max_size=25))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if several:
        labels = [tuple(map(int, row)) for row in rng.random((len(groups), 3)) < [0.5, 0.2, 0.05]]
        return data_set(labels, groups, task="multilabel"), folds
    return data_set(rng.choice(3, len(groups), p=[0.8, 0.15, 0.05]), groups), folds


@settings(max_examples=20, deadline=None)
@given(cohorts(), st.integers(0, 99))
def test_every_image_is_a_test_image_once_and_no_group_is_on_both_sides(cohort, seed):
    manifest, folds = cohort
    tested = np.zeros(len(manifest), dtype=int)
    for fold in range(folds):
        done = split_site(manifest, "s", seed, 0.15, 0.2, Fold(folds, fold)).table
        assert done["image"].tolist() == manifest.table["image"].tolist()
        assert (done.groupby("group")["split"].nunique() == 1).all()
        assert set(done["split"]) == {"train", "val", "test"}
        tested += (done["split"] == "test").to_numpy()
    assert (tested == 1).all()


def test_folds_do_not_depend_on_the_order_of_the_rows_and_differ_between_sites_and_seeds():
    rng = np.random.default_rng(3)
    labels, groups = rng.integers(0, 3, 200), rng.integers(0, 80, 200)
    manifest, turned = data_set(labels, groups), rng.permutation(200)

    def tested(data, site="s", seed=0, fold=1):
        done = split_site(data, site, seed, 0.15, 0.2, Fold(4, fold)).table
        return frozenset(done["image"][done["split"] == "test"])

    assert tested(manifest) == tested(manifest.subset(turned))
    assert tested(manifest) != tested(manifest, seed=1)
    assert tested(manifest) != tested(manifest, site="t")


def test_folds_hold_as_much_of_each_class_as_those_of_scikit_learn():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(300), rng.geometric(0.4, 300))
    labels = rng.choice(3, 300, p=[0.8, 0.15, 0.05])[groups]
    manifest = data_set(labels, groups)
    found = Groups.of(manifest)
    ours = fold_of_groups(found, 5, seed=0)[found.of_row]
    theirs = np.empty(len(labels), dtype=int)
    for fold, (_, test) in enumerate(
        StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, groups)
    ):
        theirs[test] = fold
    for label in range(3):
        spread = [np.bincount(f[labels == label], minlength=5).std() / (labels == label).sum() for f in (ours, theirs)]
        assert spread[0] <= max(spread[1], 0.01)
    assert np.bincount(ours).std() / len(labels) <= max(np.bincount(theirs).std() / len(labels), 0.01)


def test_validation_has_the_share_that_was_asked_for():
    manifest = data_set(np.random.default_rng(5).integers(0, 3, 1000))
    got = split_site(manifest, "s", 0, 0.15, 0.4, Fold(5, 2)).table["split"].value_counts(normalize=True)
    assert got["test"] == pytest.approx(0.2, abs=0.01) and got["val"] == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(("groups", "folds"), [(3, 2), (4, 5), (2, 3)])
def test_too_few_groups_are_refused_with_what_is_needed(groups, folds):
    manifest = data_set([0, 1] * groups, np.repeat(np.arange(groups), 2))
    with pytest.raises(PartitionError, match="folds need") as refused:
        split_site(manifest, "s", 0, 0.15, 0.2, Fold(folds, 0))
    assert "partition.folds" in refused.value.remedy


def test_a_given_split_and_folds_exclude_each_other():
    manifest = data_set([0, 1, 2] * 4, split=["train", "test", "train"] * 4)
    with pytest.raises(PartitionError, match=r"12 of 12 images have a given split") as refused:
        split_site(manifest, "s", 0, 0.15, 0.2, Fold(3, 0))
    assert "dataset.split=none" in refused.value.remedy
    without = manifest.with_table(manifest.table.assign(split=pd.Series([""] * 12, dtype=object)))
    split_site(without, "s", 0, 0.15, 0.2, Fold(3, 0))
