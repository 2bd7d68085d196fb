"""The whole path on drawn images: what a run leaves, resuming it, using it, and mistakes on the way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.config.compose import compose
from fed_diffmic.errors import ConfigError, DataError, ModelFileError, PartitionError
from fed_diffmic.files import load_tensors, read_json
from fed_diffmic.reporting.events import read_events
from fed_diffmic.training.metrics import METRICS
from simulations import sites as sites_module
from simulations.apply import evaluate_run, predict_run
from simulations.plan import make_plan
from simulations.run import choose_device, model_notes, simulate
from simulations.sites import build_sites

SMALL = [
    "dataset.modality=fundus",
    "dataset.phantom_images=64",
    "model=tiny",
    "model.image_side=32",
    "model.regions=2",
    "partition.sites=2",
    "partition.min_images=4",
    "stages.guidance.rounds=2",
    "stages.diffusion.rounds=2",
    "stages.guidance.epochs=1",
    "stages.diffusion.epochs=1",
    "stages.plain.epochs=1",
    "run.bootstrap=50",
    "run.device=cpu",
]


def config(folder: Path, *more: str):
    return compose(None, [*SMALL, f"dataset.cache_dir={folder / 'cache'}", f"run.dir={folder / 'run'}", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulation")
    summary = simulate(config(folder, "baselines=[local,pooled,plain]"))
    return folder, summary


def test_a_run_leaves_what_it_promises(finished):
    folder, summary = finished
    run = folder / "run"
    for name in ("config.yaml", "events.jsonl", "metrics.csv", "partition.csv", "summary.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert read_json(run / "summary.json") == json.loads(json.dumps(summary))
    assert not list((folder / "run").rglob("*.part"))


def test_summary_has_the_stated_names(finished):
    _, summary = finished
    assert summary["status"] == "done" and summary["seed"] == 0 and summary["bytes_sent"] > 0
    assert set(summary["stages"]) == {"guidance", "diffusion"}
    assert set(summary["versions"]) >= {"torch", "flwr", "timm", "fed-diffmic", "python"}
    for split in ("val", "test"):
        for metric in METRICS:
            assert set(summary["global"][split][metric]) == {"value", "low", "high", "n", "classes"}
    sites = summary["sites"]
    assert sorted(sites) == ["site-1", "site-2"]
    for site in sites.values():
        assert site["n_train"] == sum(site["class_counts"].values())
        assert site["test"]["accuracy"]["n"] == site["n_test"]
    total = sum(site["n_test"] for site in sites.values())
    assert summary["global"]["test"]["accuracy"]["n"] == total
    assert set(summary["baselines"]) == {"guidance", "local", "pooled", "plain"}
    assert set(summary["baselines"]["plain"]) == {"federated", "local", "pooled"}
    assert set(summary["baselines"]["guidance"]) == {"federated", "local", "pooled"}
    assert set(summary["differences"]) >= {"local", "pooled", "plain/federated", "guidance/federated"}


def test_a_blended_run_trains_the_same_weights_and_is_calibrated_by_the_better_share(finished, tmp_path):
    """What blending may change is the calibration and the round that is chosen: here there is one."""
    few = ("stages.diffusion.rounds=1", "baselines=[]", "run.bootstrap=0")
    runs = {}
    for name in ("false", "true"):
        given = config(tmp_path / name, *few, f"stages.diffusion.blend={name}")
        runs[name] = simulate(given)
        assert runs[name]["calibration"]["blend"] in ((0.0,) if name == "false" else (0.0, 0.25, 0.5, 0.75, 1.0))
    weights = [load_tensors(tmp_path / name / "run" / "final" / "diffusion.safetensors") for name in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    nll = {name: run["calibration"]["nll"] for name, run in runs.items()}
    assert nll["true"] <= nll["false"]
    share = runs["true"]["calibration"]["blend"]
    assert share > 0  # with this seed the guidance network says something that the head does not
    page = (tmp_path / "true" / "run" / "report.html").read_text()
    assert f"{1 - share:g} of the sampler's and {share:g} of the guidance network's" in page.replace("&#x27;", "'")


def test_bytes_sent_are_those_of_the_stages_and_the_calibration(finished):
    _, summary = finished
    stages = sum(stage["bytes_sent"] for stage in summary["stages"].values())
    assert 0 < stages <= summary["bytes_sent"]


def test_what_was_planned_is_what_was_done(finished, monkeypatch):
    folder, summary = finished
    monkeypatch.setattr("simulations.plan.MEASURED_S", 0.01)
    plan = make_plan(config(folder, "baselines=[]"))
    assert plan.bytes == pytest.approx(sum(stage["bytes_sent"] for stage in summary["stages"].values()), rel=0.1)
    assert {name: (s["n_train"], s["n_val"], s["n_test"]) for name, s in summary["sites"].items()} == plan.sites
    assert plan.rounds == {name: stage["rounds"] for name, stage in summary["stages"].items()}


def test_the_report_asks_nothing_of_the_network(finished):
    page = (finished[0] / "run" / "report.html").read_text()
    assert "ot a medical device" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_the_saved_configuration_gives_the_same_run_again(finished, tmp_path):
    folder, summary = finished
    again = compose(folder / "run" / "config.yaml", [f"run.dir={tmp_path / 'again'}", "baselines=[]"])
    repeated = simulate(again)
    assert repeated["digests"] == summary["digests"]
    assert repeated["global"] == summary["global"]


def test_a_finished_run_resumes_to_itself(finished):
    folder, summary = finished
    before = load_tensors(folder / "run" / "final" / "diffusion.safetensors")
    resumed = simulate(config(folder, "baselines=[local,pooled,plain]"), resume=True)
    after = load_tensors(folder / "run" / "final" / "diffusion.safetensors")
    assert resumed["digests"] == summary["digests"] and resumed["sites"] == summary["sites"]
    worked = max(event["elapsed"] for event in read_events(folder / "run" / "events.jsonl"))
    assert resumed["seconds"] > summary["seconds"] > 0.9 * worked  # of both processes
    assert all(np.array_equal(before[n], after[n]) for n in before)


def test_evaluate_on_another_table_and_predict(finished, tmp_path):
    folder, summary = finished
    root = folder / "run" / "phantoms"
    images = sorted((root / "train_images").iterdir())[:12]
    lines = ["image,label"]
    labels = dict(line.split(",") for line in (root / "train.csv").read_text().split()[1:])
    for image in images:
        shutil.copy(image, tmp_path / image.name)
        lines.append(f"{image.name},{summary['classes'][int(labels[image.stem])]}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    result = evaluate_run(folder / "run", tmp_path / "table.csv", tmp_path / "out.json")
    assert result["n"] == 12 and read_json(tmp_path / "out.json") == result
    rows = predict_run(folder / "run", images[:3])
    one = predict_run(folder / "run", images[1:2])
    assert [sum(row["probabilities"].values()) for row in rows] == pytest.approx([1, 1, 1])
    for name, value in one[0]["probabilities"].items():
        assert rows[1]["probabilities"][name] == pytest.approx(value, abs=1e-5)


def test_predict_says_which_image_is_unreadable(finished, tmp_path):
    (tmp_path / "patient_4711.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="image 1 of 1") as raised:
        predict_run(finished[0] / "run", [tmp_path / "patient_4711.png"])
    assert "4711" not in str(raised.value)


def test_a_changed_final_model_is_refused(finished, tmp_path):
    shutil.copytree(finished[0] / "run" / "final", tmp_path / "final")
    path = tmp_path / "final" / "diffusion.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="does not hold the weights"):
        predict_run(tmp_path, [tmp_path / "x.png"])


def test_a_site_with_too_few_images_is_named_before_training(tmp_path):
    with pytest.raises(PartitionError, match="site"):
        simulate(config(tmp_path, "partition.sites=16", "partition.min_images=20"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_corrupt_image_stops_the_run_or_is_left_out_and_counted(tmp_path):
    cfg = config(tmp_path)
    sites = build_sites(cfg, tmp_path / "run")
    whole = sum(len(s.train) + len(s.val) + len(s.test) for s in sites.sites.values())
    root = tmp_path / "run" / "phantoms"
    victim = sorted((root / "train_images").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    table = replace(cfg.dataset, name="aptos2019", root=str(root))
    with pytest.raises(DataError) as raised:
        build_sites(replace(cfg, dataset=table), tmp_path / "second")
    assert "1" in str(raised.value) and victim.stem not in str(raised.value)
    assert victim.name in (tmp_path / "second" / "findings.csv").read_text()
    skipped = build_sites(replace(cfg, dataset=replace(table, on_bad_image="skip")), tmp_path / "third")
    assert sum(len(s.train) + len(s.val) + len(s.test) for s in skipped.sites.values()) == whole - 1


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ConfigError, match=r"run\.device=cuda:99"):
        choose_device("cuda:99")


def test_frozen_random_encoders_are_said():
    assert "model.weights" in model_notes(compose(None, ["model=compact"]).model)[0]
    assert model_notes(compose(None, ["model=compact", "model.weights=w.safetensors"]).model) == []
    assert model_notes(compose(None, ["model=tiny"]).model) == []


def own_table(folder: Path, count: int = 40) -> Path:
    """A table of small drawn images, one a patient."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,label,patient_id"]
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{'ab'[index % 2]},p{index}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def test_a_partition_that_fails_leaves_no_folder(tmp_path):
    table = own_table(tmp_path / "data")
    ours = ("dataset=table", f"dataset.root={table}", "partition.sites=8", "partition.min_images=20")
    with pytest.raises(PartitionError):
        simulate(config(tmp_path, *ours))
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # one that was there before stays
    with pytest.raises(PartitionError):
        simulate(config(tmp_path, *ours))
    assert (tmp_path / "run").is_dir()


def test_data_that_changed_are_not_resumed_and_the_remedy_works(tmp_path, monkeypatch):
    """As a person meets it: stopped, twelve rows more, resumed in a new process."""
    table = own_table(tmp_path / "data")
    ours = ("dataset=table", f"dataset.root={table}", "baselines=[]", "run.bootstrap=0")
    monkeypatch.setattr("simulations.run.train_arm", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        simulate(config(tmp_path, *ours))
    partition = (tmp_path / "run" / "partition.csv").read_bytes()
    before = table.read_text()
    own_table(tmp_path / "data", 52)
    sites_module._BUILT.clear()
    with pytest.raises(DataError, match=r"list\.csv changed since this run was started: 12 image\(s\) that it had not"):
        simulate(config(tmp_path, *ours), resume=True)
    assert (tmp_path / "run" / "partition.csv").read_bytes() == partition
    table.write_text(before)  # the first remedy
    sites_module._BUILT.clear()
    with pytest.raises(KeyboardInterrupt):  # which is as far as this run goes here
        simulate(config(tmp_path, *ours), resume=True)
