"""docs/api.md, run from its first block to its last, and what its names then hold."""

import doctest
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fed_diffmic as fd
from fed_diffmic.api import datasets, models, runs
from fed_diffmic.config.compose import compose
from fed_diffmic.data import manifest as manifests
from fed_diffmic.errors import ConfigError, UsageError
from fed_diffmic.files import read_json
from fed_diffmic.inference import predictions

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page defines, in the folder in which it was run."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) == 6 == text.count("```python")
    names: dict[str, object] = {}
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        for block in blocks:
            lines = "\n" * text[: block.start(1)].count("\n")  # so that a traceback names the page's own line
            exec(compile(lines + block[1], str(PAGE), "exec"), names)
    return folder, names


def test_a_run_is_its_folder(page):
    folder, names = page
    run = names["run"]
    assert run.path == folder / "first"
    assert run.summary == read_json(folder / "first" / "summary.json") and run.summary["status"] == "done"
    assert names["accuracy"] == run.summary["global"]["test"]["accuracy"] and 0 <= names["accuracy"]["value"] <= 1
    assert run.summary["sites"].keys() == {"site-1", "site-2"}
    rows = run.metrics
    stated = rows[
        (rows.split == "test") & (rows.metric == "accuracy") & (rows.site == "global") & (rows.arm == "federated")
    ]
    pd.testing.assert_frame_equal(rows, pd.read_csv(folder / "first" / "metrics.csv"))
    assert stated.empty or stated["value"].iloc[-1] == pytest.approx(names["accuracy"]["value"])
    with pytest.raises(UsageError, match="no finished run"):
        fd.load_run(folder / "cache")


def test_settings_reach_the_run_by_every_way(page):
    saved = compose(page[0] / "first" / "config.yaml", [])
    assert (saved.model.name, saved.model.image_side, saved.model.regions) == ("tiny", 32, 2)
    assert (saved.dataset.modality, saved.dataset.phantom_images, saved.partition.sites) == ("fundus", 48, 2)
    assert (saved.stages.guidance.rounds, saved.run.bootstrap) == (1, 20)
    assert saved.dataset.cache_dir == str(page[0] / "cache")


def test_a_model_says_the_same_however_it_is_asked(page, monkeypatch):
    folder, names = page
    monkeypatch.chdir(folder)
    found, model = names["found"], names["model"]
    assert len(found) == 48 and found.unreadable == () and model.classes == tuple(names["run"].summary["classes"])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    again = names["run"].model().predict(list(found.names))
    np.testing.assert_array_equal(again.probabilities, found.probabilities)
    frame = found.to_pandas()
    assert frame["decided"].tolist() == [model.classes[i] for i in found.decided]
    predictions = [name for name in found.names if name.startswith("first/phantoms/train_images/")]
    assert len(predictions) == 48
    assert str(names["run"].model()).startswith("<fed_diffmic model of run first: ")


def test_predictions_are_those_of_the_runs_own_test_images(page, monkeypatch):
    """The metrics of the summary rest on what the loaded model says of the same images."""
    from fed_diffmic.files import load_tensors
    from simulations.sites import build_sites

    folder, names = page
    monkeypatch.chdir(folder)
    config = compose(Path("first/config.yaml"), [])
    stated = load_tensors("first/predictions.safetensors")
    table = names["manifest"].table
    by_key = dict(zip(table["key"], table["image"], strict=True))
    for site, data in build_sites(config, folder / "first").sites.items():
        files = [by_key[int(key)] for key in data.test.keys]
        said = names["model"].predict(files).probabilities
        np.testing.assert_allclose(said, stated[f"federated|{site}|probabilities"], atol=1e-4)


def test_a_partition_is_the_one_of_a_run(page, monkeypatch):
    folder, names = page
    monkeypatch.chdir(folder)
    manifest = names["manifest"]
    rows = pd.read_csv("first/partition.csv", comment="#")
    sites = fd.partition(manifest, "iid", sites=2, min_images=4)
    assert {n: len(part) for n, part in sites.items()} == rows["site"].value_counts().to_dict()
    for name, part in sites.items():
        assert {str(key) for key in part.table["key"]} == set(rows[rows["site"] == name]["key"].astype(str))
    assert np.sum(list(names["counts"].values()), axis=0).tolist() == manifest.class_counts().tolist()


def test_tables_alone_open_no_image_and_say_what_was_found(tmp_path):
    (tmp_path / "in").mkdir()
    lines = ["image,label", *(f"in/{i}.png,{'ab'[i % 2]}" for i in range(6))]
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=r"\[no-groups\]"):
        manifest = fd.datasets.load("table", tmp_path / "t.csv", classes=["b", "a"])
    assert manifest.classes == ("b", "a") and manifest.class_counts().tolist() == [3, 3]
    assert "table" in fd.datasets.names()
    with pytest.raises(ConfigError, match=r"dataset=tabel .*table"):
        fd.datasets.load("tabel", tmp_path)


def test_what_cannot_be_read_is_said_and_the_rest_is_there(page, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    _, names = page
    given = [page[0] / names["found"].names[0], tmp_path / "x.png"]
    with pytest.warns(UserWarning, match="1 images cannot be read"):
        found = names["model"].predict(given)
    assert len(found) == 1 and [bad.reason for bad in found.unreadable] == ["unknown_format"]
    for wrong in (3, [3], [b"x"]):
        with pytest.raises((UsageError, TypeError)):
            names["model"].predict(wrong)


def test_prediction_leaves_the_callers_threads_alone(page):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2 if before != 2 else 3)
    try:
        page[1]["model"].predict(np.zeros((8, 8, 3), np.uint8))
        assert torch.get_num_threads() == (2 if before != 2 else 3)
    finally:
        torch.set_num_threads(before)


def test_a_key_must_have_signed(page, tmp_path):
    from fed_diffmic.errors import ModelFileError
    from fed_diffmic.provision.keys import make_site_key

    make_site_key(tmp_path / "signing.key")
    path = tmp_path / "signing.key.pub"
    with pytest.raises(ModelFileError, match="is not signed"):
        fd.load_model(page[0] / "first", key=path)


EXAMPLES = {
    "simulate": runs.simulate,
    "load_run": runs.load_run,
    "Run": runs.Run,
    "load_model": models.load_model,
    "Model": models.Model,
    "Model.predict": models.Model.predict,
    "Predictions": predictions.Predictions,
    "datasets.load": datasets.load,
    "datasets.names": datasets.names,
    "partition": datasets.partition,
    "Manifest": manifests.Manifest,
}
"""What `fed_diffmic` offers and what that returns: the docstring of each shows its use."""


def test_everything_that_is_offered_has_an_example():
    offered = set(fd.__all__) - {"__version__", "datasets"} | {f"datasets.{name}" for name in datasets.__all__}
    assert offered - {"datasets.partition"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_docstrings(name, page, monkeypatch):
    """In the folder of the page, in which the run `first` lies."""
    monkeypatch.chdir(page[0])
    found = [
        test for test in doctest.DocTestFinder(recurse=False).find(EXAMPLES[name], name, globs={}) if test.examples
    ]
    assert len(found) == 1
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found[0], out=said.append)
    assert tried and not failed, "".join(said)
