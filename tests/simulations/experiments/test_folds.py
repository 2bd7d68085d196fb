"""Experiments over folds: predictions put together by image, intervals that hold what they promise, methods paired."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import elsewhere as elsewhere_page
from benchmarks.answer import MARK, answered
from benchmarks.pages import put, rewrite
from fed_diffmic.errors import UsageError
from fed_diffmic.files import load_tensors, read_json, save_tensors, write_json
from fed_diffmic.training.metrics import Scored, weighted_metrics
from simulations.experiments import compare, folds
from simulations.experiments.answer import answer, take
from simulations.experiments.compare import MEAN, METRICS, differences, seed_section, verdicts
from simulations.experiments.definition import load_experiment
from simulations.experiments.elsewhere import judged_elsewhere
from simulations.experiments.folds import (
    Measured,
    balanced_accuracy,
    bootstrap_error,
    combined,
    delong_error,
    folded_section,
    measure,
    out_of_fold,
)
from simulations.experiments.gather import sections
from simulations.experiments.report import write_experiment_report
from simulations.experiments.runner import run_experiment
from simulations.experiments.table import write_table

CLASSES = ("a", "b", "c")
SKILL = {"federated": 1.6, "local": 0.8, "pooled": 1.7}
IMAGES = {"s": 600, "t": 300}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(folds, "RESAMPLES", 200)


def predictions(rng, labels, skill, classes=3):
    score = skill * np.eye(classes)[labels] + rng.normal(size=(len(labels), classes))
    p = np.exp(score)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def cohort(site, anew=0):
    rng = np.random.default_rng([len(site), ord(site), anew])
    count = IMAGES[site]
    labels = rng.choice(3, count, p=[0.6, 0.25, 0.15])
    return np.arange(count) + 10_000 * (ord(site) + anew), labels, np.arange(count) // 2


def write_runs(folder, *, seeds=2, count=3, skill=None, external=True, anew=False):
    """Runs as simulations leave them: every image tested once a seed, rows in another order in every run."""
    cells = {"m": {}}
    for seed in range(1, seeds + 1):
        for fold in range(count):
            place = folder / f"{seed}-{fold}"
            rng = np.random.default_rng([seed, fold])
            tensors = {}
            for site in IMAGES:
                keys, labels, groups = cohort(site, seed if anew else 0)
                held = rng.permutation(np.flatnonzero((groups + seed) % count == fold))
                for arm, value in {**SKILL, **(skill or {})}.items():
                    p = predictions(rng, labels[held], value)
                    tensors |= {f"{arm}|{site}|probabilities": p, f"{arm}|{site}|decided": p.argmax(axis=1)}
                tensors |= {f"{site}|keys": keys[held], f"{site}|labels": labels[held]}
                tensors[f"{site}|groups"] = np.unique(groups[held], return_inverse=True)[1]
            place.mkdir(parents=True)
            save_tensors(place / "predictions.safetensors", tensors)
            if external:
                labels = np.arange(400) % 3
                away = {"e|labels": labels, "e|groups": np.arange(400), "e|keys": np.arange(400)}
                for model, value in {"federated": 1.5, "local/s": 0.5, "local/t": 1.5}.items():
                    p = predictions(np.random.default_rng([seed, fold, len(model)]), labels, value)
                    away |= {f"{model}|e|probabilities": p, f"{model}|e|decided": p.argmax(axis=1)}
                save_tensors(place / "external.safetensors", away)
            facts = {"classes": list(CLASSES), "sites": dict.fromkeys(IMAGES), "bytes_sent": 5}
            facts["partition"] = {"folds": count, "fold": fold}
            write_json(place / "summary.json", facts)
            cells["m"].setdefault(str(seed), []).append(place)
    return cells


def test_all_folds_together_hold_every_image_once_and_groups_stay_together(tmp_path):
    cells = write_runs(tmp_path)
    found = out_of_fold(cells["m"]["2"])
    for site, count in IMAGES.items():
        keys, labels, groups = cohort(site)
        np.testing.assert_array_equal(found[f"{site}|keys"], keys)
        np.testing.assert_array_equal(found[f"{site}|labels"], labels)
        pairs = np.unique(np.stack([groups, found[f"{site}|groups"]], axis=1), axis=0)
        assert len(pairs) == len(np.unique(groups)) == len(np.unique(pairs[:, 1])) == count // 2


def test_a_section_has_the_metrics_of_all_images_and_says_who_is_above(tmp_path):
    section = folded_section({}, write_runs(tmp_path), 3)
    anew = folded_section({}, write_runs(tmp_path / "anew", anew=True), 3)
    assert anew.drawn_anew and not section.drawn_anew
    assert "draws its sites anew" in answer(anew, [])[-2] and "anew" not in answer(section, [])[-2]
    assert section.images == IMAGES and section.seeds == ("1", "2") and section.folds == 3
    seed = out_of_fold([tmp_path / f"1-{fold}" for fold in range(3)])
    p, labels = seed["federated|s|probabilities"], seed["s|labels"]
    known = weighted_metrics(Scored(p, p.argmax(axis=1), labels, np.arange(600), "multiclass"), np.ones((600, 1)))
    for figure in ("auroc_macro", "balanced_accuracy"):
        assert section.values["m", "s", figure][0] == pytest.approx(known[figure][0])
        assert section.values["m", MEAN, figure] == pytest.approx(
            (section.values["m", "s", figure] + section.values["m", "t", figure]) / 2
        )
        found = differences(section, "local", figure)
        assert [found["m", place].verdict for place in ("s", "t", MEAN)] == ["above"] * 3
        assert differences(section, "pooled", figure)["m", MEAN].verdict == "not shown"
        assert found["m", MEAN].high - found["m", MEAN].low < found["m", "t"].high - found["m", "t"].low
    assert take(section, "m", "s").model == "m"


def test_a_seed_without_all_folds_is_left_out_and_other_images_are_refused(tmp_path):
    cells = write_runs(tmp_path)
    section = folded_section({}, {"m": {"1": cells["m"]["1"], "2": cells["m"]["2"][:2]}}, 3)
    assert section.seeds == ("1",) and section.left_out == ("2",)
    assert not folded_section({}, {"m": {"2": cells["m"]["2"][:2]}}, 3).seeds
    other = write_runs(tmp_path / "other", anew=True)
    with pytest.raises(UsageError, match="tested on other images"):
        folded_section({}, {"m": cells["m"], "n": other["m"]}, 3)


def test_a_site_where_no_class_counts_has_no_metrics_and_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "LEAST_POSITIVES", 200)  # only the first class of the larger site has as many
    section = folded_section({}, write_runs(tmp_path), 3)
    assert [len(section.judged[site]) for site in ("s", "t")] == [1, 0]
    assert np.isnan(section.values["m", "t", "auroc_macro"]).all()
    assert ("m", "t") not in differences(section, "local", "auroc_macro")
    assert verdicts(section, "auroc_macro")["m"]["above_local_at"] == ["s"]
    assert any(line.startswith("| t | 300 | 0 of 3 | - |") for line in answer(section, []))
    # Of the one class at the larger site there is a ranking, and no balanced accuracy: its recall is no such thing.
    assert any(line.startswith("| s | 600 | 1 of 3: a | 0.") for line in answer(section, []))
    assert np.isnan(section.values["m", "s", "balanced_accuracy"]).all()
    assert not any(metric == "balanced_accuracy" for _, _, _, metric in section.gaps)
    headline = answer(section, [])[0]
    assert headline.startswith(
        "**In macro AUROC alone, as a mean over the sites' own patients, federating helped (m minus"
    )
    assert "balanced accuracy undefined: too few test images" in headline
    assert "balanced accuracy - of pooled's" in "\n".join(answer(section, []))


def test_a_class_with_few_others_does_not_count(tmp_path, monkeypatch):
    """It has many positives and hardly an image that is not: as little can be said of it as of the few."""
    held = [np.arange(30)[:, None] < np.array([29, 20, 1])]
    monkeypatch.setattr(compare, "LEAST_POSITIVES", 2)
    assert compare.counting(held).tolist() == [1]
    more = np.arange(30)[:, None] < np.array([20, 20, 20])
    assert compare.counting([*held, more]).tolist() == [1] and compare.counting([*held, more], np.sum).tolist() == [
        0,
        1,
        2,
    ]
    assert compare.counting([]).tolist() == []


def test_of_one_patient_nothing_is_shown_of_others(tmp_path):
    """Influences of one group sum to 0, and every resample of it is itself: an interval of no width, and *above*."""
    cells = write_runs(tmp_path)
    for paths in cells["m"].values():
        for path in paths:
            away = load_tensors(path / "external.safetensors")
            save_tensors(path / "external.safetensors", {**away, "e|groups": np.zeros(400, np.int64)})
            own = load_tensors(path / "predictions.safetensors")
            save_tensors(
                path / "predictions.safetensors", {**own, "t|groups": np.zeros(len(own["t|groups"]), np.int64)}
            )
    (found,) = judged_elsewhere(cells, 3)
    assert found.groups == 1 and found.gaps == {} and combined(np.array([0.1]), 1e-17, 0).verdict == "not shown"
    one = {"m": {seed: paths[:1] for seed, paths in cells["m"].items()}}
    section = folded_section({}, one, 1)
    assert {place for _, _, place, _ in section.gaps} == {"s"}, "nor of a mean over sites that has such a site"


def test_personal_models_stand_against_one_another_too(tmp_path):
    """The better of two that are both better than the federation is taken, by the rule and not by their order."""
    section = folded_section({}, write_runs(tmp_path, skill={"mixture": 3.5, "finetune": 2.4}), 3)
    choice = take(section, "m", "s")
    assert choice.model == "m: mixture"
    steps = {(step.candidate, step.against): step.value for step in choice.steps}
    gap = np.mean(section.values["m: mixture", "s", METRICS[1]] - section.values["m: finetune", "s", METRICS[1]])
    assert steps["m: mixture", "m: finetune"] == pytest.approx(gap)


def test_an_image_in_two_folds_is_refused_and_so_are_methods_of_other_images_without_folds(tmp_path):
    cells = write_runs(tmp_path)["m"]["1"]
    with pytest.raises(UsageError, match="at s an image is a test image of two folds"):
        out_of_fold([cells[0], cells[0], cells[2]])
    for path in cells:
        told = read_json(path / "summary.json")
        sites = {site: {"n_train": 3, "n_val": 1, "n_test": 2} for site in told["sites"]}
        write_json(path / "summary.json", {**told, "sites": sites})
    seed_section({}, {"m": {"1": cells[0]}, "n": {"1": cells[0]}})
    with pytest.raises(UsageError, match="method n, seed 1: at s it was tested on other images"):
        seed_section({}, {"m": {"1": cells[0]}, "n": {"1": cells[1]}})


def test_a_part_of_the_folds_is_not_called_every_image(tmp_path, capsys):
    """``axes.fold=1``: the index has one fold, the runs know of three."""
    runs = write_runs(tmp_path / "exp" / "cells", seeds=2)["m"]
    cells = [
        {"name": f"{seed}-{fold}", "place": {"seed": seed, "fold": str(fold)}, "digest": ""}
        for seed, folds_of in (("1", (1,)), ("2", (1,)))
        for fold in folds_of
    ]
    write_json(
        tmp_path / "exp" / "experiment.json", {"experiment": "x", "about": "y", "axes": ["seed"], "cells": cells}
    )
    assert sections(tmp_path / "exp")[0].folds == 3 and not sections(tmp_path / "exp")[0].seeds
    missing = r"no seed is whole yet; not there: seed 1 \(fold 0, 2 of 3\); seed 2 \(fold 0, 2 of 3\)"
    with pytest.raises(UsageError, match=missing) as refused:
        write_experiment_report(tmp_path / "exp")
    assert "does what is missing" in refused.value.remedy
    cells += [{"name": f"1-{fold}", "place": {"seed": "1", "fold": str(fold)}, "digest": ""} for fold in (0, 2)]
    write_json(
        tmp_path / "exp" / "experiment.json", {"experiment": "x", "about": "y", "axes": ["seed"], "cells": cells}
    )
    assert sections(tmp_path / "exp")[0].seeds == ("1",) and len(runs) == 2


def test_where_pooled_never_finds_a_class_there_is_a_report_without_that_ratio(tmp_path):
    section = folded_section({}, write_runs(tmp_path), 3)
    nought = {key: value * 0 if key[0] == "pooled" else value for key, value in section.values.items()}
    none = replace(section, values=nought)
    assert math.isnan(verdicts(none, "balanced_accuracy")["m"]["mean_over_pooled"])
    assert "balanced accuracy - of pooled's" in "\n".join(answer(none, []))


def test_equal_methods_are_called_different_about_as_often_as_promised():
    """What the interval is for: patients drawn anew, two models alike, two seeds of each."""
    judged, wrong, trials = np.arange(3), {"auroc_macro": 0, "balanced_accuracy": 0}, 80
    rng = np.random.default_rng(0)
    for _ in range(trials):
        labels = rng.choice(3, 160, p=[0.5, 0.3, 0.2])
        hard = rng.normal(size=(160, 3))  # what is hard of an image is hard for every model
        ours, theirs, images = [], [], []
        for _ in range(2):
            tensors = {"s|labels": labels, "s|keys": np.arange(160), "s|groups": np.arange(160)}
            for arm in "xy":
                p = np.exp(1.2 * np.eye(3)[labels] + hard + 0.7 * rng.normal(size=(160, 3)))
                p /= p.sum(axis=1, keepdims=True)
                tensors |= {f"{arm}|s|probabilities": p, f"{arm}|s|decided": p.argmax(axis=1)}
            ours.append(measure(tensors, "x", "s", judged))
            theirs.append(measure(tensors, "y", "s", judged))
            images.append(tensors)
        for position, (figure, error) in enumerate(zip(METRICS, (bootstrap_error, delong_error), strict=True)):
            gaps = np.array([a.value[position] - b.value[position] for a, b in zip(ours, theirs, strict=True)])
            spread = error(ours, theirs, images, "s", judged)
            wrong[figure] += combined(gaps, spread, 159).verdict != "not shown"
    assert all(0 <= count <= 0.1 * trials for count in wrong.values()), wrong


def test_the_interval_by_hand():
    """Gaps 0.1 and 0.3, error 0.05: variance 0.0025 + 0.02 / 2; freedom 0.0125^2 / (0.01^2 / 1 + 0.0025^2 / 99)."""
    from scipy import stats

    gap = combined(np.array([0.1, 0.3]), 0.05, 99)
    freedom = 0.0125**2 / (0.01**2 + 0.0025**2 / 99)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(0.0125)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.2, 0.2 - reach, 0.2 + reach))
    one = combined(np.array([0.2]), 0.05, 99)
    assert one.high - one.mean == pytest.approx(0.05 * stats.t.ppf(0.975, 99))


def test_seeds_of_other_images_at_a_site_do_not_average_the_patients_away():
    rng = np.random.default_rng(5)
    found = [Measured((0.0, 0.0), rng.normal(size=50), rng.random((50, 2)) < 0.5) for _ in range(4)]
    none = [Measured((0.0, 0.0), np.zeros(50), np.ones((50, 2), bool)) for _ in range(4)]
    same = {"s|keys": np.arange(50), "s|groups": np.arange(50), "s|labels": np.arange(50) % 2}
    anew = [{**same, "s|keys": np.arange(50) + 100 * seed} for seed in range(4)]
    for error in (delong_error, bootstrap_error):
        together, apart = (error(found, none, images, "s", np.arange(2)) for images in ([same] * 4, anew))
        assert apart == pytest.approx(2 * together, rel=0.35)  # four seeds, as good as independent here


def test_balanced_accuracy_under_weights_is_that_of_the_repeated_images():
    rng = np.random.default_rng(2)
    for several in (False, True):
        truth = rng.random((30, 3)) < 0.4 if several else np.eye(3, dtype=bool)[rng.integers(0, 3, 30)]
        decided = rng.random((30, 3)) < 0.5 if several else np.eye(3, dtype=bool)[rng.integers(0, 3, 30)]
        times = rng.integers(0, 3, 30)
        found = balanced_accuracy(decided == truth, truth, times[:, None].astype(float), several)[0]
        y, z = (np.repeat(x, times, axis=0) for x in (truth, decided))
        recalls = [
            (z[y[:, c], c].mean() + (~z[~y[:, c], c]).mean()) / 2 if several else z[y[:, c], c].mean() for c in range(3)
        ]
        assert found == pytest.approx(np.mean(recalls))


def test_on_patients_from_elsewhere_every_local_model_stands_against_the_global_one(tmp_path):
    (found,) = judged_elsewhere(write_runs(tmp_path), 3)
    assert (found.name, found.images, found.groups, found.classes) == ("e", 400, 400, CLASSES)
    assert set(found.values) == {(m, f) for m in ("m", "local/s", "local/t") for f in METRICS}
    assert found.gaps["m", "local/s", "auroc_macro"].verdict == "above"
    assert found.gaps["m", "local/t", "auroc_macro"].verdict == "not shown"
    assert judged_elsewhere(write_runs(tmp_path / "without", external=False), 3) == []


def test_the_page_of_elsewhere_counts_what_is_above(tmp_path):
    """One folder with folds and both seeds: the global model is above one site's own and level with the other's."""
    runs = write_runs(tmp_path / "exp" / "cells")
    cells = [
        {"name": path.name, "place": {"seed": seed, "fold": str(number), "method": "m"}, "digest": ""}
        for seed, paths in runs["m"].items()
        for number, path in enumerate(paths)
    ]
    index = {"experiment": "x", "about": "y", "axes": ["seed", "fold", "method"], "cells": cells}
    write_json(tmp_path / "exp" / "experiment.json", index)
    told = elsewhere_page.judged([tmp_path / "exp"])
    text = elsewhere_page.lines(told)
    (found,) = judged_elsewhere(runs, 3)
    gaps = [found.gaps["m", f"local/{site}", "auroc_macro"] for site in ("s", "t")]
    mean = f"(mean difference {(gaps[0].mean + gaps[1].mean) / 2:+.3f})"
    assert f"macro AUROC: above in 1 (1★), below in 0, not shown in 1 of 2 {mean}" in text[0]
    p = [gap.p for gap in gaps]
    corrected = [told[0].gaps["m", f"local/{site}", "auroc_macro"].adjusted for site in ("s", "t")]
    assert corrected == [min(p[0] * 2, 1.0), p[1]] and p[0] * 2 < 0.05 < p[1], "Holm over both, by the same metric"
    rows = [line for line in text if line.startswith("| e | 400 | a b c | 1, 2 |")]
    assert [row.split(" | ")[4] for row in rows] == ["m", "local/s", "local/t"]
    with pytest.raises(UsageError, match="there is no experiment|holds no"):
        elsewhere_page.judged([tmp_path / "nothing"])
    short = "<!-- elsewhere short -->\n<!-- end of elsewhere short -->"
    page = elsewhere_page.written(short, told)
    (row,) = [line for line in page.splitlines() if line.startswith("| e |")]
    cells = row.split(" | ")
    seeds = [found.values[model, "auroc_macro"] for model in ("m", "local/s", "local/t")]
    values = [f"{both.mean():.3f}" for both in seeds]
    assert cells[:4] == ["| e", "400", "a, b, c", "1, 2"] and cells[7] == values[0] and cells[9] == "- |"
    assert cells[8] == f"s {values[1]} (above★), t {values[2]} (not shown)"
    with pytest.raises(UsageError, match="no lines <!-- elsewhere -->"):
        elsewhere_page.written("nothing", told)


def test_the_answer_says_whether_whom_which_and_how_sure(tmp_path):
    section = folded_section({}, write_runs(tmp_path), 3)
    text = "\n".join(answer(section, judged_elsewhere(write_runs(tmp_path / "e"), 3)))
    assert text.startswith("**Federating helped, as a mean over the sites' own patients (m minus each site alone:")
    assert "macro AUROC: better off: s, t." in text and "of pooled's" in text
    assert "On patients from elsewhere (e: 400 images, 400 groups" in text
    assert "(DeLong's variance; bootstrap) and over seeds; each for itself." in text
    assert "| s | 600 | 3 of 3: a, b, c | 0." in text and "Rows with different classes are not comparable." in text
    assert "every image was a test image once (3 folds, 2 seed(s) (1, 2) as repeats of the whole)" in text
    worse = folded_section({}, write_runs(tmp_path / "w", skill={"federated": 0.3}, seeds=1), 3)
    text = "\n".join(answer(worse, []))
    assert text.startswith("**Federating made it worse") and "| local |" in text
    assert take(worse, "m", "s").model == "local" and "what another training would change is not in them" in text


def test_the_answer_says_whom_a_personal_model_serves(tmp_path):
    section = folded_section({}, write_runs(tmp_path, skill={"mixture": 2.2, "finetune": -0.8}), 3)
    lines = answer(section, [])
    rows = [line for line in lines if line.startswith(("| m: mixture |", "| m: finetune |"))]
    said = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:2] for row in said] == [
        [f"m: {kind}", metric] for kind in ("finetune", "mixture") for metric in ("balanced accuracy", "macro AUROC")
    ]
    for row in said:
        better, worse = ("s, t", "none") if row[0] == "m: mixture" else ("none", "s, t")
        assert row[3:5] == [better, worse] and ("above" if better == "s, t" else "below") in row[2]
    mine, pooled = (section.values[model, MEAN, "auroc_macro"].mean() for model in ("m: mixture", "pooled"))
    assert said[3][5] == f"{mine / pooled:.3f}" and mine > pooled
    assert not any(
        "made each site's own" in line for line in answer(folded_section({}, write_runs(tmp_path / "n"), 3), [])
    )


def test_the_axis_fold_makes_a_cell_of_each(experiment_file):
    text = experiment_file().read_text().replace("  seed: [1, 2]", "  seed: [1, 2]\n  fold: 3")
    found = load_experiment(str(experiment_file(text)), ["axes.method=fedavg"])
    assert len(found.cells) == 6 and found.cells[1].name == "seed-1_fold-1_method-fedavg"
    assert [(c.config.partition.folds, c.config.partition.fold) for c in found.cells[:3]] == [(3, 0), (3, 1), (3, 2)]
    assert len(load_experiment(str(experiment_file(text)), ["axes.method=fedavg", "axes.fold=1"]).cells) == 2
    for wrong in ("1", "[0, 1]", "true", "x"):
        with pytest.raises(UsageError, match=r"axes\.fold is the number of folds"):
            load_experiment(str(experiment_file(text.replace("fold: 3", f"fold: {wrong}"))))


def test_in_which_order_seeds_and_folds_were_begun_changes_nothing(tmp_path):
    runs = [folder for found in write_runs(tmp_path / "exp" / "cells")["m"].values() for folder in found]
    cells = [
        {"name": run.name, "place": dict(zip(("seed", "fold"), run.name.split("-"), strict=True)), "digest": ""}
        for run in runs
    ]
    index = {"experiment": "x", "about": "y", "axes": ["seed", "fold"]}
    said = []
    for order in (cells, cells[::-1], [cells[1], cells[5], *cells[2:5], cells[0]]):
        write_json(tmp_path / "exp" / "experiment.json", {**index, "cells": order})
        (section,) = sections(tmp_path / "exp")
        said.append(answer(section, []))
        assert section.seeds == ("1", "2") and any("3 folds, 2 seed(s) (1, 2)" in line for line in said[-1])
    assert said[0] == said[1] == said[2]


def test_an_experiment_over_folds_runs_and_its_report_opens_with_the_answer(
    experiment_file, drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr("simulations.experiments.compare.LEAST_POSITIVES", 2)  # a few images a site
    text = experiment_file().read_text().replace("seed: [1, 2]", "seed: [1]\n  fold: 2").replace("rounds=3", "rounds=1")
    found = load_experiment(str(experiment_file(text)), [*drawn, "axes.method=fedavg"])
    assert run_experiment(found, tmp_path / "out").failed == {}
    (section,) = sections(tmp_path / "out")
    table = write_table(tmp_path / "out")[0]
    tested = table.query("split == 'test' and arm == 'federated' and metric == 'accuracy'")
    for site, count in section.images.items():
        assert tested[tested["site"] == site]["n"].sum() == count
    assert sum(section.images.values()) == tested[tested["site"] == "all"]["n"].sum() == 96
    write_experiment_report(tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.index("How sure: every image was a test image once (2 folds") < report.index("## All methods")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- answer -->\nSTALE\n<!-- end of answer -->\nbelow\n")
    rewrite(page, lambda text: put(text, MARK, answered(tmp_path / "out")))
    assert page.read_text().startswith("above\n<!-- answer -->\n**")
    assert page.read_text().endswith("\n<!-- end of answer -->\nbelow\n")
    assert "STALE" not in page.read_text() and "2 of 2 runs" in page.read_text()
    with pytest.raises(UsageError, match="has no lines"):
        put("no marks", MARK, ["x"])
