"""What predictions say of how sure they are: sets, uncertainty that passed its test, referral, unlike images."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fed_diffmic.errors import DataError, ModelFileError, UsageError
from fed_diffmic.inference.evaluate import TableSettings
from fed_diffmic.inference.predictions import predict_files
from fed_diffmic.inference.reference import load_reference, make_reference
from fed_diffmic.inference.sure import Wanted, sure
from fed_diffmic.training.conformal import CELLS, Rule, cells
from fed_diffmic.training.evaluation import predict_doubts, predict_scores
from fed_diffmic.training.sureness import Sureness
from fed_diffmic.training.uncertainty import measured
from tests import toy
from tests.inference.tiny import CLASSES, draw_images, tiny_predictor, write_table

P = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]])


def known(task="multiclass", good=True):
    """Thresholds by hand, and a measure that finds errors (or the reverse)."""
    table = np.zeros((2, CELLS + 1), int)
    table[0, 20:60], table[1, 90:110] = 5, 5
    measure = measured("entropy", table if good else table[::-1])
    if task == "multilabel":
        rules = (Rule("lac", 0.9, (120, 120, 120), ((120, 120),) * 3),)
    else:
        rules = (Rule("lac", 0.9, (130,), ((50, 130, CELLS),)), Rule("aps", 0.9, (150,), ((150,) * 3,)))
    return Sureness(task, 3, 300, ("a", "b"), ("c",), rules, (measure,))


def said(wanted=None, doubts=None, task="multiclass", p=P, **more):
    given = known(task) if "known" not in more else more.pop("known")
    doubts = {"entropy": np.array([0.1, 0.5, 0.9]), "spread": np.zeros(3)} if doubts is None else doubts
    return sure(p, doubts, CLASSES, task, given, wanted or Wanted(), **more)


def test_sets_by_hand():
    found = said(Wanted(by_class=False))
    assert [found.set_of(i) for i in range(3)] == [["benign"], ["benign", "malignant"], []]
    assert "rare class may be in none" in found.sentences()[0]
    by_class = said()
    assert by_class.set_of(0) == ["other"], "a class that has too few is in every set"
    assert said(Wanted(method="aps", by_class=False)).set_of(0) == ["benign"]
    several = said(task="multilabel", p=np.array([[0.9, 0.5, 0.1]]), doubts={})
    assert several.set_of(0) == {"benign": "present", "malignant": "either", "other": "absent"}
    with pytest.raises(UsageError, match="aps is not for multilabel"):
        said(Wanted(method="aps"), task="multilabel", p=P[:1], doubts={})


def test_only_what_finds_errors_is_shown_and_only_by_it_is_referred():
    found = said(Wanted(refer=0.3))
    assert list(found.doubts) == ["entropy"], "spread was not tested"
    point = found.measures[0].at(0.3)
    np.testing.assert_array_equal(found.referred, cells([0.1, 0.5, 0.9]) > point.cell)
    assert found.referred.tolist() == [False, True, True]
    none = said(known=known(good=False))
    assert not none.doubts and "uncertainty" not in none.facts() and none.referred is None
    assert any("better than a coin" in s for s in none.sentences())
    with pytest.raises(UsageError, match="nothing can be referred by"):
        said(Wanted(refer=0.3), known=known(good=False))
    unlike = said(Wanted(refer=0.3), unfamiliar=np.array([True, False, False]))
    assert unlike.referred.tolist() == [True, True, True], "an image of another kind is referred too"


@pytest.mark.parametrize("wrong", [{"level": 0.91}, {"refer": 0.17}])
def test_levels_and_shares_that_were_not_worked_out_are_refused(wrong):
    with pytest.raises(UsageError, match="is not one that was worked out"):
        Wanted(**wrong)


def test_what_is_promised_is_said_and_what_is_not_known_too():
    facts = said(Wanted(refer=0.15)).facts()
    assert facts["prediction_sets"]["sites"] == ["a", "b"] and facts["prediction_sets"]["silent_sites"] == ["c"]
    text = " ".join(facts["sure"])
    assert "90%" in text and "2 sites" in text and "at one site alone it may be less" in text and "Refer 15%" in text
    assert "entropy" in facts["uncertainty"] and facts["referral"]["measure"] == "entropy"
    old = said(known=None)
    assert old.sets is None and not old.doubts and "fed-diffmic reference" in old.sentences()[0]
    nobody = said(known=Sureness("multiclass", 3, silent=("a",)))
    assert "no site told" in nobody.sentences()[0]
    full = replace(known(), rules=(Rule("lac", 0.9, (CELLS,), ((CELLS,) * 3,)),))
    assert "every set holds everything" in said(known=full).sentences()[0]
    assert said(known=full).set_of(2) == list(CLASSES)
    json.dumps(facts, allow_nan=False)


def test_a_folders_predictions_carry_it_into_every_form(tmp_path):
    predictor = tiny_predictor()
    predictor.sureness = known()
    images = list(map(str, draw_images(tmp_path, 5)))
    found = predict_files(predictor, images, wanted=Wanted(refer=0.5))
    rows = found.to_json()["images"]
    assert all({"set", "uncertainty", "referred"} <= set(row) and "unfamiliar" not in row for row in rows)
    header, *lines = found.to_csv().splitlines()
    assert header.endswith("p_other,set,u_entropy,referred") and len(lines) == 5
    frame = found.to_pandas()
    assert frame["set"].tolist() == ["|".join(row["set"]) for row in rows]
    assert frame["referred"].tolist() == [row["referred"] for row in rows]
    bad = predict_files(predictor, [str(tmp_path / "none.png")], wanted=Wanted(refer=0.5))
    assert len(bad) == 0 and bad.to_csv().splitlines()[1].count(",") == header.count(",")
    predictor.sureness = known(good=False)
    with pytest.raises(UsageError, match="nothing can be referred by"):
        predict_files(predictor, images, wanted=Wanted(refer=0.5))


@pytest.mark.parametrize("settings", [("stages.diffusion.blend=true",), ("stages.diffusion.encoders=frozen",)])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_scores_beside_doubts_are_the_same_bits(settings, task):
    predictor = tiny_predictor(*settings, "model.sampling_starts=3", task=task)
    part = toy.toy_site("a", 1, 40, side=32).train
    scores, doubts = predict_doubts(predictor.module, part)
    np.testing.assert_array_equal(scores, predict_scores(predictor.module, part))
    assert set(doubts) == {"disagreement", "spread"}
    assert all(value.shape == (20,) and (value >= 0).all() and (value <= 1).all() for value in doubts.values())
    assert doubts["spread"].max() > 0 < doubts["disagreement"].max()
    one, _ = predict_doubts(tiny_predictor(task=task, stage="guidance").module, part)
    assert one.shape == (20, 3)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    table = write_table(folder, draw_images(folder / "in", 60, seed=3))
    predictor = tiny_predictor()
    return predictor, make_reference(predictor, table, TableSettings(str(folder / "cache"))), folder


def test_a_sites_reference_gives_its_own_sets_and_warns_of_what_it_never_saw(site, tmp_path):
    predictor, made, _ = site
    path = made.save(tmp_path / "own.safetensors")
    assert path.stat().st_mode & 0o777 == 0o600
    own = load_reference(path, predictor)
    assert own.sureness == made.sureness and own.familiar.threshold == made.familiar.threshold
    assert own.sureness.n == 60 and own.sureness.sites == ("this site",)
    new = list(map(str, draw_images(tmp_path / "new", 20, seed=9)))
    found = predict_files(predictor, new, reference=own)
    assert found.sure.unfamiliar.mean() <= 0.3 and found.sure.known == own.sureness
    from PIL import Image

    Image.new("RGB", (50, 50), (0, 0, 0)).save(tmp_path / "blank.png")
    blank = predict_files(predictor, [str(tmp_path / "blank.png")], reference=own)
    assert blank.to_json()["images"][0]["unfamiliar"] is True


def test_a_reference_is_made_and_used_in_one_precision(site, tmp_path):
    """Its distances are those of a prediction of the same image, bit for bit; numbers of another precision are not."""
    _, made, folder = site
    rough = tiny_predictor()
    rough.precision = "bfloat16"
    own = make_reference(rough, folder / "table.csv", TableSettings(str(folder / "cache")))
    assert not np.array_equal(own.familiar.means, made.familiar.means)
    path = own.save(tmp_path / "rough.safetensors")
    assert load_reference(path, rough).precision == "bfloat16"
    with pytest.raises(ModelFileError, match="was made in bfloat16"):
        load_reference(path, tiny_predictor())
    with pytest.raises(ModelFileError, match="was made in float32"):
        load_reference(made.save(tmp_path / "own.safetensors"), rough)


def test_a_reference_of_another_model_or_a_torn_one_is_refused(site, tmp_path):
    predictor, made, folder = site
    path = made.save(tmp_path / "own.safetensors")
    with pytest.raises(ModelFileError, match="another model"):
        load_reference(path, tiny_predictor("seed=5"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelFileError):
        load_reference(path, predictor)
    with pytest.raises(ModelFileError):
        load_reference(tmp_path / "none", predictor)
    few = write_table(folder, sorted((folder / "in").iterdir())[:30])
    with pytest.raises(DataError, match="too few to say what is unusual"):
        make_reference(predictor, few, TableSettings(str(folder / "cache")))
