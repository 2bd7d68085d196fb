"""The whole path on drawn images: what a run leaves, resuming it, using it, and mistakes on the way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fed_diffmic.cli import main
from fed_diffmic.config.compose import compose, to_yaml
from fed_diffmic.config.folders import holds_run
from fed_diffmic.config.simulation import StagesConfig, StrategyConfig
from fed_diffmic.errors import ConfigError, DataError, ModelFileError, PartitionError
from fed_diffmic.files import load_tensors, read_json
from fed_diffmic.release.final import FinalModel
from fed_diffmic.reporting.events import read_events
from fed_diffmic.training.metrics import METRICS
from simulations import run as run_module
from simulations import sites as sites_module
from simulations.arms import Arm, arms_of
from simulations.experiments.runner import run_cell
from simulations.plan import make_plan
from simulations.run import choose_device, model_notes, simulate, validation_score
from simulations.sites import VirtualSites, build_sites
from simulations.summary import nested, stage_facts
from tests.toy import Events, toy_spec
from tests.undrawn import undraw

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
    "stages.plain.rounds=2",
    "run.bootstrap=50",
    "run.device=cpu",
]


ALL = ("baselines=[local,pooled,plain]", "stages.plain.rounds=1")


def config(folder: Path, *more: str):
    return compose(None, [*SMALL, f"dataset.cache_dir={folder / 'cache'}", f"run.dir={folder / 'run'}", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulation")
    summary = simulate(config(folder, *ALL))
    return folder, summary


def test_a_run_leaves_what_it_promises(finished):
    folder, summary = finished
    run = folder / "run"
    for name in ("config.yaml", "events.jsonl", "metrics.csv", "partition.csv", "summary.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert read_json(run / "summary.json") == json.loads(json.dumps(summary))
    assert not list((folder / "run").rglob("*.part"))
    assert [path.parent.name for path in run.rglob("checkpoints")] == ["run"]  # arms are loaded from final/


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
    for name, found in summary["differences"].items():  # the federation less the other, at each site
        outer, _, inner = name.partition("/")
        other = summary["baselines"][outer][inner] if inner else summary["baselines"][outer]
        for site, block in sites.items():
            ours, theirs = (b["test"]["accuracy"]["value"] for b in (block, other["sites"][site]))
            assert found["sites"][site]["accuracy"]["value"] == pytest.approx(ours - theirs)


def test_a_blended_run_trains_the_same_weights_and_is_calibrated_by_the_better_share(tmp_path, monkeypatch):
    """What blending may change is the calibration and the round that is chosen: here there is one."""
    undraw(monkeypatch)
    few = ("stages.guidance.rounds=1", "stages.diffusion.rounds=1", "baselines=[]", "run.bootstrap=0")
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
    assert f"{1 - share:g} of the second network's and {share:g} of the guidance network's" in page.replace(
        "&#x27;", "'"
    )


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


def test_the_saved_configuration_gives_the_same_run_again(finished, tmp_path, monkeypatch):
    undraw(monkeypatch)
    folder, summary = finished
    again = compose(folder / "run" / "config.yaml", [f"run.dir={tmp_path / 'again'}", "baselines=[]"])
    repeated = simulate(again)
    assert repeated["digests"] == summary["digests"]
    assert repeated["global"] == summary["global"]


def test_a_finished_run_resumes_to_itself(finished, monkeypatch):
    undraw(monkeypatch)
    folder, summary = finished
    before = load_tensors(folder / "run" / "final" / "diffusion.safetensors")
    resumed = simulate(config(folder, *ALL), resume=True)
    after = load_tensors(folder / "run" / "final" / "diffusion.safetensors")
    assert resumed["digests"] == summary["digests"] and resumed["sites"] == summary["sites"]
    worked = max(event["elapsed"] for event in read_events(folder / "run" / "events.jsonl"))
    assert resumed["seconds"] > summary["seconds"] > 0.9 * worked  # of both processes
    assert all(np.array_equal(before[n], after[n]) for n in before)


def test_evaluate_on_another_table_and_predict(finished, tmp_path, capsys):
    folder, summary = finished
    root = folder / "run" / "phantoms"
    images = sorted((root / "train_images").iterdir())[:12]
    lines = ["image,label"]
    labels = dict(line.split(",") for line in (root / "train.csv").read_text().split()[1:])
    for image in images:
        shutil.copy(image, tmp_path / image.name)
        lines.append(f"{image.name},{summary['classes'][int(labels[image.stem])]}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    run, out = str(folder / "run"), tmp_path / "out.json"
    assert main(["evaluate", "--run", run, "--manifest", str(tmp_path / "table.csv"), "--json", str(out)]) == 0
    assert read_json(out)["n"] == 12 and read_json(out)["run"] == "run"
    assert str(folder / "cache") in capsys.readouterr().out.replace("\n", "")
    found = {}
    for name, given in (("three", images[:3]), ("one", images[1:2])):
        assert main(["predict", "--run", run, *map(str, given), "--json", str(tmp_path / name)]) == 0
        found[name] = read_json(tmp_path / name)["images"]
    assert [sum(row["probabilities"].values()) for row in found["three"]] == pytest.approx([1, 1, 1])
    for name, value in found["one"][0]["probabilities"].items():
        assert found["three"][1]["probabilities"][name] == pytest.approx(value, abs=1e-5)


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


def no_weights(tmp_path: Path, kind: str) -> Path:
    """A file that is named as weights and is none, or is another network's."""
    path = tmp_path / f"{kind}.safetensors"
    if kind == "another network":
        save_file({"conv1.weight": torch.zeros(2, 3, 5, 5)}, path)
    else:
        path.write_text('{"epoch": 3}')
    return path


class Reached(Exception):
    """The run is past its weights, and would read its images."""


@pytest.mark.parametrize("key", ["weights", "prior_weights"])
@pytest.mark.parametrize("kind", ["no weights", "another network"])
def test_weights_that_cannot_be_used_leave_the_folder_free(tmp_path, monkeypatch, kind, key):
    """As the remedy says, another file is named, and the same command works."""
    monkeypatch.setattr("simulations.run.shared_sites", lambda *_: (_ for _ in ()).throw(Reached))
    own = "model.prior_init=own"
    given = config(tmp_path, own, f"model.{key}={no_weights(tmp_path, kind)}")
    with pytest.raises(ModelFileError):
        simulate(given)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # as an experiment makes a cell's
    with pytest.raises(ModelFileError):
        simulate(given)
    assert not holds_run(tmp_path / "run")
    with pytest.raises(Reached):  # past the check
        simulate(given, resume=True)  # whose first stages may be done, whatever has become of the file
    net = timm.create_model(given.model.guidance_backbone)
    save_file(net.state_dict(), tmp_path / "good.safetensors")
    with pytest.raises(Reached):
        simulate(config(tmp_path, own, f"model.{key}={tmp_path / 'good.safetensors'}"))


def test_a_cell_whose_weights_cannot_be_used_is_not_begun(tmp_path):
    cell = tmp_path / "cell"
    cell.mkdir()
    given = compose(None, [*SMALL, f"run.dir={cell}", f"model.weights={no_weights(tmp_path, 'no weights')}"])
    (cell / "cell.yaml").write_text(to_yaml(given))
    assert "neither a safetensors file" in run_cell(cell)
    assert read_json(cell / "failed.json")["code"] == "FD005" and not (cell / "config.yaml").exists()


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


def history(*rows, select="auroc_macro"):
    """A final model that only has a history: ``(stage, figure, loss)`` a round."""
    stages = toy_spec(select=select).stages
    mean = [{k: v for k, v in (("auroc_macro", f), ("loss", loss)) if v is not None} for _, f, loss in rows]
    made = [{"stage": stage, "mean": found} for (stage, *_), found in zip(rows, mean, strict=True)]
    return FinalModel(replace(toy_spec(), stages=stages), {}, {}, made, 7, {})


def test_a_rate_is_judged_by_the_best_round_of_the_stage_asked_for():
    found = history(("guidance", 0.9, 0.1), ("diffusion", 0.6, 0.2), ("diffusion", 0.7, 0.9), ("diffusion", 0.5, 0.1))
    assert validation_score(found, "diffusion") == (1.0, 0.7) and validation_score(found, "guidance") == (1.0, 0.9)
    least = history(("plain", 0.9, 0.4), ("plain", 0.1, 0.3), select="loss")
    assert validation_score(least, "plain") == (0.0, -0.3)
    undefined = history(("plain", None, 0.4), ("plain", None, 0.6))
    assert validation_score(undefined, "plain") == (0.0, -0.4)
    assert validation_score(history(("plain", 0.01, 5.0)), "plain") > validation_score(undefined, "plain")
    assert validation_score(history(("plain", None, None)), "plain") == (-1.0, 0.0)


def test_the_rate_that_stays_did_best_in_the_last_stage_and_goes_to_every_stage(tmp_path, monkeypatch):
    """The first stage says another one; the other arms' noise and names are their own."""
    scores = {0.5: (0.9, 0.6), 1.0: (0.7, 0.8), 2.0: (0.8, 0.7)}
    given = config(tmp_path, "run.lr_scales=[0.5,1,2]")
    ran, real = [], given.stages.diffusion.lr

    def run_arm(configured, spec, arm, folder, run_dir, events):
        factor = spec.stages.diffusion.lr / real
        ran.append((factor, spec.stages.guidance.lr / given.stages.guidance.lr, spec.arm, folder, configured))
        guidance, diffusion = scores[round(factor, 6)]
        return history(("guidance", guidance, 1.0), ("diffusion", diffusion, 1.0))

    monkeypatch.setattr(run_module, "run_arm", run_arm)
    arm = Arm("federated", ("guidance", "diffusion"), ("site-1", "site-2"))
    sites = VirtualSites({}, ("x", "y", "z"), "multiclass", (), {})
    events = Events([])
    trained = run_module.train_arm(given, arm, sites, tmp_path / "run", events, "cpu")
    assert (trained.lr_scale, trained.folder) == (1.0, tmp_path / "run" / "lr-1")
    assert validation_score(trained.final, "diffusion") == (1.0, 0.8)
    assert [row[0] for row in ran] == pytest.approx([0.5, 1, 2]) == [row[1] for row in ran]
    assert {row[2] for row in ran} == {"federated"} and len({row[3] for row in ran}) == 3
    assert [e["lr_scale"] for e in events.of("trial_started")] == [0.5, 1.0, 2.0]
    assert [(e["arm"], e["lr_scale"], e["bytes_sent"]) for e in events.of("arm_done")] == [("federated", 1.0, 7)]


def test_a_site_alone_is_hidden_from_nobody_and_a_federation_is():
    noisy = StrategyConfig(client_noise_multiplier=1.5)
    assert run_module.strategy_of(noisy, Arm("local/a", ("plain",), ("a",))).client_noise_multiplier == 0.0
    assert run_module.strategy_of(noisy, Arm("federated", ("plain",), ("a", "b"))) == noisy
    assert run_module.strategy_of(noisy, Arm("federated", ("plain",), ("a",))).client_noise_multiplier == 0.0


def test_whoever_is_alone_trains_plainly_whatever_the_strategy():
    """FedDyn's or FedProx's penalty, coded or masked updates: of all that a site alone has nothing."""
    given = StrategyConfig(name="feddyn", weighting="equal", codec="int8", secure_aggregation="masked", mu=0.5)
    arms = arms_of(["local", "pooled", "plain"], ["a", "b"], StagesConfig())
    seen = {arm.name: run_module.strategy_of(given, arm) for arm in arms}
    federated = {"federated", "plain/federated"} & set(seen)
    assert {name for name, strategy in seen.items() if strategy == given} == federated != set(seen)
    assert all(seen[name] == StrategyConfig(keep_optimizer_state=True) for name in set(seen) - federated)


def test_each_method_uses_its_arms_own_model_at_each_place(tmp_path, monkeypatch):
    """Guidance alone is of the same arm; a site alone uses its own model; personal parts go to their owners only."""
    made = []

    def predictor(spec, stage, state, fitted, device, own, sureness):
        made.append(SimpleNamespace(stage=stage, state=state, fitted=fitted, own=own))
        return made[-1]

    monkeypatch.setattr(run_module, "Predictor", predictor)

    def own_part(folder, final, stage, site):  # a later stage has the guidance network's part in its own
        stages = {"diffusion": ("guidance", "diffusion")}.get(stage, (stage,))
        return [name for name in stages if site in final.personal.get(name, {})] and f"{stage} of {site}"

    monkeypatch.setattr(run_module, "own_part", own_part)

    def trained(name, **personal):
        states = {stage: f"{name} {stage}" for stage in ("guidance", "diffusion", "plain")}
        final = FinalModel(toy_spec(), states, dict(states), [], 0, {}, personal=personal)
        return run_module.TrainedArm(final, tmp_path / name, 1.0)

    both, places = ("guidance", "diffusion"), {"a": None, "b": None}
    arms = [Arm("federated", both, ("a", "b")), Arm("local/a", both, ("a",)), Arm("local/b", both, ("b",))]
    arms += [Arm("pooled", both, ("pooled",)), Arm("plain/local/a", ("plain",), ("a",))]
    kept = {"federated": {"diffusion": {"a": "digest"}}}
    final = {arm.name: trained(arm.name, **kept.get(arm.name, {})) for arm in arms}
    sites = VirtualSites(places, ("x", "y"), "multiclass", (), {})
    methods = dict(run_module.method_models(arms, final, sites, "cpu"))
    shown = {name: {place: model.state for place, model in models.items()} for name, models in methods.items()}
    assert shown == {
        "federated": {"a": "federated diffusion", "b": "federated diffusion"},
        "guidance/federated": {"a": "federated guidance", "b": "federated guidance"},
        "local": {"a": "local/a diffusion", "b": "local/b diffusion"},
        "guidance/local": {"a": "local/a guidance", "b": "local/b guidance"},
        "pooled": {"a": "pooled diffusion", "b": "pooled diffusion"},
        "guidance/pooled": {"a": "pooled guidance", "b": "pooled guidance"},
        "plain/local": {"a": "plain/local/a plain"},
    }
    assert all(model.fitted == model.state for model in made)
    assert methods["federated"]["a"] is not methods["federated"]["b"], "a has a part of its own"
    assert methods["federated"]["a"].own == "diffusion of a" and not methods["federated"]["b"].own
    assert methods["pooled"]["a"] is methods["pooled"]["b"] and not methods["pooled"]["a"].own

    final["federated"] = trained("federated", guidance={"a": "digest", "b": "digest"})
    found = dict(run_module.method_models(arms, final, sites, "cpu"))
    assert [found["federated"][place].own for place in places] == ["diffusion of a", "diffusion of b"]


def test_stage_facts_are_of_the_stage():
    rows = [("guidance", 0.9, 1.0), ("plain", 0.5, 1.0), ("plain", 0.6, 1.0)]
    final = history(*rows)
    for number, row in enumerate(final.history):
        row.update(best_round=number, seconds=10.0**number, bytes_sent=2**number)
    facts = stage_facts(final, "plain")
    assert (facts["rounds"], facts["best_round"], facts["seconds"], facts["bytes_sent"]) == (2, 2, 110.0, 6)
    assert facts["history"] == final.history[1:] and facts["select"] == "auroc_macro"
    assert nested({"local": 1, "plain/local": 2, "plain/pooled": 3}) == {
        "local": 1, "plain": {"local": 2, "pooled": 3},
    }  # fmt: skip
