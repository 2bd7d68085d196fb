"""A saved partition repeats itself exactly, or says why it cannot."""

import numpy as np
import pandas as pd
import pytest

from fed_diffmic.config.simulation import PartitionConfig
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.splits import split_site
from fed_diffmic.errors import PartitionError
from simulations.partitioners import load_partition, partition, save_partition


def data_set(n: int = 60) -> Manifest:
    i = np.arange(n)
    table = pd.DataFrame({"image": [f"/ward7/{k}.png" for k in i], "label": i % 2, "group": [f"p{k // 2}" for k in i]})
    return Manifest(table.assign(key=i.astype(np.uint64) + np.uint64(2**63)), ("a", "b"), "multiclass", "toy")


@pytest.fixture
def parts():
    return {
        name: split_site(part, name, 0, 0.15, 0.2)
        for name, part in partition(data_set(), PartitionConfig(name="iid", sites=3), 0).items()
    }


def test_read_back_it_is_the_same(parts, tmp_path):
    digest = save_partition(tmp_path / "p.csv", parts)
    again = load_partition(tmp_path / "p.csv", data_set().subset(np.random.default_rng(0).permutation(60)))
    assert list(again) == list(parts)
    for site, part in parts.items():
        columns = ["key", "split", "group", "label"]
        expected = part.table[columns].sort_values("key").reset_index(drop=True)
        pd.testing.assert_frame_equal(again[site].table[columns].sort_values("key").reset_index(drop=True), expected)
    assert save_partition(tmp_path / "q.csv", again) == digest
    text = (tmp_path / "p.csv").read_text()
    assert digest in text and "ward7" not in text and "p1" not in text


def test_of_other_images(parts, tmp_path):
    save_partition(tmp_path / "p.csv", parts)
    with pytest.raises(PartitionError, match="0 of 50 images here are not in it, 10 of its 60 are not here"):
        load_partition(tmp_path / "p.csv", data_set(50))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b.replace(b"site-1", b"site-2"), lambda b: b"", lambda b: b"\xff"]
)
def test_torn_or_changed(parts, tmp_path, damage):
    save_partition(tmp_path / "p.csv", parts)
    (tmp_path / "p.csv").write_bytes(damage((tmp_path / "p.csv").read_bytes()))
    with pytest.raises(PartitionError, match="not a whole partition file"):
        load_partition(tmp_path / "p.csv", data_set())


def test_missing(tmp_path):
    with pytest.raises(PartitionError, match="No such file"):
        load_partition(tmp_path / "p.csv", data_set())


def test_what_cannot_be_saved(parts, tmp_path):
    with pytest.raises(ValueError, match="content key and a split"):
        save_partition(tmp_path / "p.csv", {"s": data_set()})
