"""Test sets from elsewhere and test images: read when everything is trained and chosen, never before."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fed_diffmic.cli import main
from fed_diffmic.data.cache import ImageCache
from fed_diffmic.data.phantoms import write_phantoms
from fed_diffmic.errors import ConfigError, DataError
from fed_diffmic.files import load_tensors
from fed_diffmic.release.final import load_final
from fed_diffmic.reporting.report import write_report
from fed_diffmic.training.features import SHARED
from fed_diffmic.training.metrics import Scored
from simulations import run as run_module
from simulations.arms import Arm, arms_of
from simulations.external import COLUMN, External, judge_external, open_external
from simulations.run import simulate
from simulations.sites import shared_sites
from tests.simulations.test_strategies import LINEAR, compose
from tests.toy import toy_site, toy_spec

OURS = [*LINEAR, "partition.sites=2", "stages.plain.rounds=2", "baselines=[local]", "run.lr_scales=[1,3]"]
OURS += ["partition.folds=3", "partition.fold=1", "run.bootstrap=40"]


def table_of(folder, name, *, count, seed, drop=()):
    """Drawn fundus photographs as a plain table, some grades left out."""
    drawn = write_phantoms(folder / f"drawn-{name}", "fundus", count, seed=seed)
    rows = pd.read_csv(drawn / "train.csv", dtype=str)
    pictures = {path.stem: path for path in drawn.rglob("*.png")}
    rows = rows[~rows["diagnosis"].isin(drop)]
    out = folder / name
    out.mkdir()
    for code in rows["id_code"]:
        shutil.copy(pictures[code], out / f"{code}.png")
    table = pd.DataFrame({"image": rows["id_code"] + ".png", "label": rows["diagnosis"]})
    table.to_csv(out / "manifest.csv", index=False)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run in which the table from elsewhere appears when all is chosen, and every image that is read is noted."""
    folder = tmp_path_factory.mktemp("external")
    away = table_of(folder, "away", count=40, seed=9, drop=["4"])
    hidden = folder / "hidden"
    away.rename(hidden)
    settings = [f"dataset.cache_dir={folder / 'cache'}", f"dataset.root={folder / 'phantoms'}", *OURS]
    settings += ["strategy.personal=[mixture,finetune]", f"external.away={away}/manifest.csv"]
    config = compose(None, [*settings, f"run.dir={folder / 'run'}"])
    read, patch = set(), pytest.MonkeyPatch()
    whole, images, summarise = set(), ImageCache.images, run_module.summarise

    def noted(cache, rows):
        read.update((id(cache), int(row)) for row in rows)
        return images(cache, rows)

    def reveal(given, sites, *rest):
        tests = {(id(d.test.cache), int(row)) for d in sites.sites.values() for row in d.test.rows}
        whole.update({(id(d.train.cache), int(row)) for d in sites.sites.values() for row in d.train.rows})
        assert tests and not tests & read, "a test image was read before everything was chosen"
        assert whole <= read, "the training images were not read: the test would see nothing"
        hidden.rename(away)
        return summarise(given, sites, *rest)

    def begun(*given):
        read.clear()  # opening a data set looks at every image once, for black and doubled ones
        return arms_of(*given)

    SHARED._entries.clear()  # features of an earlier test would hide what is read
    patch.setattr(ImageCache, "images", noted)
    patch.setattr(run_module, "arms_of", begun)
    patch.setattr(run_module, "summarise", reveal)
    try:
        summary = simulate(config)
    finally:
        patch.undo()
    return folder, config, summary


def test_nothing_read_a_test_image_or_a_table_from_elsewhere_before_the_end(finished):
    """The fixture fails where something did; what is left to see is that they were judged at all."""
    _, _, summary = finished
    assert summary["external"]["away"]["n"] > 20 and summary["partition"]["folds"] == 3


def test_the_table_is_listed_apart_and_says_over_which_classes(finished):
    folder, _, summary = finished
    away = summary["external"]["away"]
    assert away["absent"] == [summary["classes"][4]] and len(away["present"]) == 4
    models = {"federated", "local/site-1", "local/site-2", "mixture/site-1", "mixture/site-2"}
    models |= {"finetune/site-1", "finetune/site-2"}
    assert set(away["models"]) == models and set(away["differences"]) == models - {"federated"}
    own = away["models"]["federated"]["auroc_macro"]
    assert own["classes"] == away["present"] and own["n"] == away["n"]
    gap = away["differences"]["local/site-1"]["auroc_macro"]
    assert gap["value"] == pytest.approx(own["value"] - away["models"]["local/site-1"]["auroc_macro"]["value"])
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert all(COLUMN + "away" in row for row in summary["matrix"].values())
    assert all(row["all"]["n"] == summary["global"]["test"]["accuracy"]["n"] for row in summary["matrix"].values())
    tensors = load_tensors(folder / "run" / "external.safetensors")
    assert tensors["federated|away|probabilities"].shape == (away["n"], 5)
    assert "away" not in summary["sites"]


def test_the_model_of_a_grid_lies_where_a_runs_model_is_looked_for(finished):
    folder, _, summary = finished
    run, rates = folder / "run", summary["lr_scales"]
    assert set(rates.values()) <= {1.0, 3.0} and (run / "lr-3" / "final").is_dir()
    for arm, place in {"federated": run, **{a: Arm(a, (), ()).folder(run) for a in rates if "/" in a}}.items():
        model, kept = load_final(place), load_final(place / f"lr-{rates[arm]:g}")
        assert model.digests == kept.digests and model.spec == kept.spec, arm
    assert main(["predict", "--run", str(run), str(next(folder.glob("away/*.png")))]) == 0


def test_the_report_and_the_advice_name_it(finished):
    folder, _, summary = finished
    page = write_report(folder / "run", summary, events=[], config_yaml="").read_text()
    assert "external: away" in page and "Patients from elsewhere" in page
    for site in summary["sites"]:
        advice = summary["advice"][site]
        assert advice["take"]["model"] in ("federated", "local", "mixture", "finetune")
        assert [step["candidate"] for step in advice["take"]["steps"]] == ["local", "finetune", "mixture"]
        assert set(advice["elsewhere"]) == {"local", "finetune", "mixture"}
    assert set(summary["personal"]["mixture"]) == set(summary["sites"])
    assert set(summary["baselines"]) == {"local", "mixture", "finetune"}


def test_images_that_are_also_the_sites_own_are_refused_and_named_by_number(finished):
    folder, config, _ = finished
    own = table_of(folder, "own", count=64, seed=0)
    sites = shared_sites(config, folder / "run")
    with pytest.raises(DataError, match=r"external\.own: \d+ of its \d+ images are also among") as refused:
        open_external(replace(config, external={"own": str(own)}), sites, folder / "run")
    assert "--resume" in refused.value.remedy


def test_a_label_that_is_none_of_the_runs_classes_is_refused(finished):
    folder, config, _ = finished
    strange = table_of(folder, "strange", count=20, seed=11)
    table = pd.read_csv(strange / "manifest.csv", dtype=str)
    table.assign(label=np.where(table.index == 3, "melanoma", table["label"])).to_csv(
        strange / "manifest.csv", index=False
    )
    with pytest.raises(DataError, match="label"):
        open_external(
            replace(config, external={"s": str(strange)}), shared_sites(config, folder / "run"), folder / "run"
        )


def test_names_that_could_not_stand_in_a_table_are_refused():
    with pytest.raises(ConfigError, match=r"external\."):
        compose(None, ["external.a|b=x.csv"])


class Coin:
    """A model that knows nothing, as a Judge."""

    spec = toy_spec()

    def predict(self, examples):
        p = np.random.default_rng(0).dirichlet(np.ones(3), len(examples))
        return Scored(p, p.argmax(axis=1), examples.labels, examples.groups, "multiclass")


def test_many_sites_without_a_shared_model_are_judged_by_their_own():
    """The matrix leaves out methods with more models than it can show; here that would be everything that there is."""
    table = External(toy_site("away", 5, count=24).train, ("0", "1", "2"), ())
    own = {f"site-{number}": Coin() for number in range(17)}
    said, _, cells = judge_external({"x": table}, {"federated": own}, 0)
    assert len(said["x"]["models"]) == 17 and "federated/site-16" in cells and said["x"]["n"] == len(table.examples)
    both = {"federated": own, "pooled": dict.fromkeys(own, Coin())}
    assert set(judge_external({"x": table}, both, 0)[0]["x"]["models"]) == {"pooled"}
