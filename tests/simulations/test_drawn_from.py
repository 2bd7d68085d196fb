"""A resumed run is of the data with which it was started, or says what changed; its remedy works."""

import shutil

import numpy as np
import pandas as pd
import pytest

from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import DataError, ModelFileError
from simulations.drawn_from import FILE, keep_or_check


def data_set(n: int = 60, first: int = 1) -> Manifest:
    i = np.arange(n)
    table = pd.DataFrame({"image": [f"/w/{k}.png" for k in i], "label": i % 2, "group": [f"p{k // 2}" for k in i]})
    return Manifest(table.assign(key=i + first), ("a", "b"), "multiclass", "toy", "list.csv")


@pytest.fixture
def run(tmp_path):
    keep_or_check(tmp_path, data_set())
    (tmp_path / "config.yaml").touch()  # from here on the folder holds a run
    return tmp_path


def test_the_same_data_in_another_order_are_the_same(run):
    before = (run / FILE).read_bytes()
    keep_or_check(run, data_set().subset(np.random.default_rng(0).permutation(60)))
    assert (run / FILE).read_bytes() == before and (run / FILE).stat().st_mode & 0o077 == 0
    assert "p7" not in before.decode() and ".png" not in before.decode()


def relabelled() -> Manifest:
    found = data_set()
    return found.with_table(found.table.assign(label=1 - found.table["label"].where(found.table.index > 2, 0)))


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (data_set(72), "list.csv changed since this run was started: 12 image(s) that it had not."),
        (data_set(55), "5 image(s) fewer"),
        (data_set(60, first=4), "3 image(s) that it had not; 3 image(s) fewer"),
        (data_set().with_table(data_set().table.assign(group="p0")), "58 image(s) with another label, patient"),
        (relabelled(), "image(s) with another label"),
    ],
)
def test_changed_data_are_refused_with_their_number(run, now, words):
    with pytest.raises(DataError) as caught:
        keep_or_check(run, now)
    assert words in caught.value.cause.replace("; test", ". Test") and "/w/" not in str(caught.value)
    # what the remedy says: the data as they were, or another run.dir
    keep_or_check(run, data_set())
    (run / "another").mkdir()
    keep_or_check(run / "another", now)


def test_before_anything_is_trained_data_may_be_mended(tmp_path):
    keep_or_check(tmp_path, data_set())
    keep_or_check(tmp_path, data_set(72))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(DataError, match="12 image"):
        keep_or_check(tmp_path, data_set())


def test_a_damaged_record_is_refused(run):
    (run / FILE).write_text('{"images": 3}')
    with pytest.raises(ModelFileError, match="does not hold"):
        keep_or_check(run, data_set())
    shutil.copy(run / "config.yaml", run / FILE)
    with pytest.raises(ModelFileError):
        keep_or_check(run, data_set())
