"""What each partitioner is for: alike sites, unlike sites, sites given by nature."""

import numpy as np
import pandas as pd
import pytest

from fed_diffmic.config.simulation import PartitionConfig
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import PartitionError
from simulations.partitioners import partition
from simulations.partitioners.institution import site_name


def data_set(n: int = 1200, classes: int = 4, institutions=("b", "a"), per_group: int = 2) -> Manifest:
    i = np.arange(n)
    table = pd.DataFrame(
        {
            "image": [f"/x/{k}" for k in i],
            "label": (i // per_group) % classes,
            "group": [f"g{k // per_group}" for k in i],
            "institution": [institutions[(k // per_group) % len(institutions)] for k in i],
            "key": i.astype(np.uint64) + np.uint64(1),
        }
    )
    return Manifest(table, tuple("abcdefgh"[:classes]), "multiclass", "toy")


def shares(parts: dict[str, Manifest]) -> np.ndarray:
    counts = np.stack([part.class_counts() for part in parts.values()])
    return counts / counts.sum(axis=1, keepdims=True)


def test_iid_sites_are_of_equal_size_and_alike():
    parts = partition(data_set(), PartitionConfig(name="iid", sites=4), 0)
    assert all(abs(len(part) - 300) <= 2 for part in parts.values())
    assert np.abs(shares(parts) - 0.25).max() < 0.08


def test_iid_with_one_giant_group():
    data = data_set()
    giant = data.table.assign(group=np.where(np.arange(1200) < 400, "giant", data.table["group"]))
    sizes = [len(p) for p in partition(data.with_table(giant), PartitionConfig(name="iid", sites=4), 0).values()]
    assert max(sizes) < 720 and min(sizes) > 50


def test_dirichlet_concentration_decides_how_unlike_the_sites_are():
    spread = {}
    for alpha in (0.1, 1.0, 1000.0):
        draws = [partition(data_set(), PartitionConfig(name="dirichlet", sites=4, alpha=alpha), s) for s in range(6)]
        spread[alpha] = np.mean([shares(parts).std(axis=0).mean() for parts in draws])
    assert spread[0.1] > 1.5 * spread[1.0] > 3 * spread[1000.0]
    assert spread[1000.0] < 0.03


def test_dirichlet_for_several_labels_deals_the_rarest_label_of_a_group():
    n = 600
    label = [(1, int(i % 6 == 0), 0) for i in range(n)]  # the first is everywhere, the second at every sixth
    table = pd.DataFrame({"image": [f"/{i}" for i in range(n)], "group": [str(i) for i in range(n)]})
    table["label"] = pd.Series(label, dtype=object)
    data = Manifest(table.assign(key=np.arange(1, n + 1)), ("x", "y", "z"), "multilabel", "toy")
    parts = partition(data, PartitionConfig(name="dirichlet", sites=3, alpha=0.2), 3)
    rare = np.array([part.class_counts()[1] / len(part) for part in parts.values()])
    assert rare.max() - rare.min() > 0.2


def test_dirichlet_gives_up_after_a_bounded_number_of_draws():
    with pytest.raises(PartitionError, match=r"alpha 0\.001: in the best of 200 draws site-\d+ has \d+ image"):
        partition(data_set(200, classes=2), PartitionConfig(name="dirichlet", sites=8, alpha=0.001), 0)


def test_institution_names_the_sites():
    parts = partition(
        data_set(institutions=("vidir", "St. Mary's / Wing 2")), PartitionConfig(name="institution", sites=9), 0
    )
    assert list(parts) == ["St._Mary_s_Wing_2", "vidir"]
    assert set(parts["vidir"].table["institution"]) == {"vidir"}
    assert site_name("../..") == "_"


def test_a_group_seen_at_two_institutions_stays_whole_where_most_of_it_is():
    data = data_set(per_group=3)
    institution = data.table["institution"].to_numpy(dtype=object).copy()
    institution[:3] = ["a", "b", "a"]
    parts = partition(
        data.with_table(data.table.assign(institution=institution)), PartitionConfig(name="institution"), 0
    )
    assert (parts["a"].table["group"] == "g0").sum() == 3


@pytest.mark.parametrize(
    ("institutions", "message"),
    [
        (("a",), "there is 1"),
        (("a", "b", ""), "400 of 1200 images have none"),
        (("a b", "a/b"), "2 institutions give only 1"),
    ],
)
def test_institutions_that_cannot_be_sites(institutions, message):
    with pytest.raises(PartitionError, match=message):
        partition(data_set(institutions=institutions), PartitionConfig(name="institution"), 0)


def test_ham10000_over_its_four_institutions(shared):
    table = pd.read_csv(shared / "data/ham10000/HAM10000_metadata.csv")
    classes = tuple(sorted(table["dx"].unique()))
    data = pd.DataFrame({"image": "/" + table["image_id"], "label": table["dx"].map(classes.index)})
    data = data.assign(group=table["lesion_id"], institution=table["dataset"])
    parts = partition(Manifest(data, classes, "multiclass", "ham"), PartitionConfig(name="institution"), 0)
    sizes = {name: len(part) for name, part in parts.items()}
    # 3954 and 3363 rows, but some lesions were photographed at both departments of vidir: they stay whole
    assert sizes == {"rosendahl": 2259, "vidir_modern": 3363 + 9, "vidir_molemax": 3954 - 9, "vienna_dias": 439}


def test_institutions_keep_their_script():
    named = ("\u5317\u4eac\u533b\u9662", "\u4e0a\u6d77\u533b\u9662", "Universit\u00e4t/K\u00f6ln")
    parts = partition(data_set(institutions=named), PartitionConfig(name="institution"), 0)
    assert set(parts) == {named[0], named[1], "Universit\u00e4t_K\u00f6ln"}
    assert site_name("Universita\u0308t") == "Universit\u00e4t"
    assert site_name("../..") == "_" and "/" not in site_name("\u4e2d/\u6587")
