"""A hostile coordinator cannot use up a hospital's machine with one request: disk, memory, threads or time."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from client.source import SiteSource
from fed_diffmic.config.compose import compose, compose_site
from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.site import PolicyConfig, SiteConfig, SiteGroup
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.deadline import OutOfTimeError, time_bound
from fed_diffmic.errors import MachineError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.training.stages import build_module
from fed_diffmic.transport.processes import child_env, start_child
from tests import toy

CLASSES = ["benign", "malignant", "other"]
MIB = 2**20


def policy() -> PolicyConfig:
    named = ["policy.runs=[pilot]", "policy.datasets=[table]", f"policy.classes=[{','.join(CLASSES)}]"]
    return compose_site(None, ["policy=standard", *named]).policy


def spec(*settings: str, **changes: Any) -> RunSpec:
    config = compose(None, ["model=tiny", "stages=tiny", *settings])
    made = make_spec(config, classes=CLASSES, task="multiclass", run_id="pilot", arm="federated", device="cpu")
    return replace(made, **changes)


def code_of(asked: RunSpec, kind: str = "query", stage: str = "diffusion") -> int | None:
    header: dict[str, Any] = {"run": asked.run_id, "arm": asked.arm}
    if kind != "query":
        header |= {"stage": stage, "round": 1, "site": "a", "sums": False}
    denied = SitePolicy(policy()).check(kind, asked, Payload(kind, header), dataset="table")
    return None if denied is None else denied.code


def test_an_ordinary_request_passes() -> None:
    assert [code_of(spec(), kind) for kind in ("query", "train", "evaluate")] == [None] * 3


VIT = "vit_giant_patch14_224"
HUGE = {
    "17 GB of weights": (["model.latent=65536", "model.norm=group"], {}),
    "the largest backbone": ([f"model.guidance_backbone={VIT}", f"model.prior_backbone={VIT}", "model.image_side=224",
                              "model.prior_init=own"], {}),
    "images of 2048 pixels": (["model.image_side=2048"], {}),
    "a sampler of a million evaluations": (["model.sampling_steps=1000", "model.sampling_starts=1024"], {}),
    "3000 threads": ([], {"threads": 3000}),
    "no threads": ([], {"threads": 0}),
    "fewer than no threads": ([], {"threads": -1}),
    "as many threads as there are addresses": ([], {"threads": 2**40}),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("kind", ["query", "train"])
def test_what_is_too_large_is_refused_before_anything_is_built(name: str, kind: str) -> None:
    settings, changes = HUGE[name]
    before = time.process_time()
    assert code_of(spec(*settings, **changes), kind) == failures.LIMIT_SIZE
    assert time.process_time() - before < 15  # the giant too is looked at without its 4 GB


def test_one_step_over_everything_is_refused_by_its_memory() -> None:
    asked = spec("stages.guidance.batch_size=65536", "stages.guidance.steps=1", "model.image_side=224")
    assert code_of(asked, "train", "guidance") == failures.LIMIT_MEMORY


# ---- disk ----------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    images = tmp_path / "images"
    images.mkdir()
    rows = ["image,label,patient_id"]
    for i in range(30):
        Image.new("RGB", (40, 40), (i * 8, 5 * i, 255 - i)).save(images / f"{i}.png")
        rows.append(f"{i}.png,{CLASSES[i % 3]},p{i}")
    (images / "manifest.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "site").mkdir()
    group = SiteGroup(name="one", folder=str(tmp_path / "site"))
    return SiteConfig(site=group, dataset=DatasetConfig(name="table", root=str(images)), policy=policy())


def decoded(config: SiteConfig) -> list[int]:
    return sorted(path.stat().st_size for path in Path(str(config.site.folder)).rglob("*.u8"))


def at_side(side: int, run: str = "pilot") -> RunSpec:
    asked = toy.toy_spec()
    return replace(asked, run_id=run, model=replace(asked.model, image_side=side))


def test_a_run_that_asks_at_many_sizes_leaves_one_copy(site: SiteConfig) -> None:
    source = SiteSource(site)
    for side in (64, 65, 66, 67, 68):
        assert len(source(None, at_side(side), {}).train) > 0
    assert decoded(site) == [30 * 3 * 68 * 68]


def test_many_runs_at_many_sizes_stay_within_the_limit(site: SiteConfig) -> None:
    from fed_diffmic.config.policy_limits import Limits

    site = replace(site, policy=replace(site.policy, limits=Limits(cache_mib=1.0)))
    source = SiteSource(site)
    for i, side in enumerate((64, 65)):
        source(None, at_side(side, f"run-{i}"), {})
    with pytest.raises(MachineError) as refused:
        source(None, at_side(66, "run-2"), {})
    assert failures.failure_code(refused.value) == failures.LIMIT_CACHE
    assert decoded(site) == [30 * 3 * 64 * 64, 30 * 3 * 65 * 65]  # what the others use is still there
    assert len(source(None, at_side(64, "run-0"), {}).train) > 0


# ---- time ----------------------------------------------------------------------------------------


def test_the_sampler_stops_between_its_steps() -> None:
    module = build_module(spec("model.sampling_steps=1000", "model.sampling_starts=1"), "diffusion").eval()
    images, starts = torch.zeros(2, 3, 64, 64), torch.rand(2, 1, 2, 3)
    with torch.no_grad():
        inputs = module.inputs(images)
        begun = time.monotonic()
        with pytest.raises(OutOfTimeError), time_bound(0.3):
            module.scores(inputs, starts)
    assert time.monotonic() - begun < 2.0


HANGS = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from fed_diffmic.transport.processes import die_with_parent
die_with_parent()
root = Path(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as in an operator that does not return
from client import site as client_site
from client.watch import Watch
from fed_diffmic.transport.messages import failure_of
from fed_diffmic.training import local
from tests import site_rules, toy
from tests.client.test_app import context, send, task
toy.install_toy_networks()
rules = site_rules.rules(root / "log", "a", max_seconds=0.5)
watch = Watch(root / "site" / "run", root / "site")
rules = replace(rules, watch=watch)
client_site.register_source(toy.ToySource({"a": toy.toy_site("a", 1)}), rules=rules)
def hang(*_):
    (root / "begun").write_text(str(os.getpid()))
    time.sleep(600)
local.batches = hang
failed = failure_of(send(task("train"), "train", context(root)))
(root / "answer.part").write_text(json.dumps(failed[0]))
(root / "answer.part").replace(root / "answer")
time.sleep(600)
"""
GROWS = """
import os, sys, time
from pathlib import Path
from fed_diffmic.transport.processes import die_with_parent
die_with_parent()
from client.watch import COMPUTING, Watch
root = Path(sys.argv[1])
watch = Watch(root / "site" / "run", root / "site")
mark = watch.mark("a" * 64)
if mark is not None:
    (root / "answer.part").write_text(str(mark.code))
    (root / "answer.part").replace(root / "answer")
    time.sleep(600)
with watch.doing("train", COMPUTING, "a" * 64, 600.0, 2033):
    (root / "begun").write_text(str(os.getpid()))
    held = b"x" * (400 << 20)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("worker", "memory_mib", "code"),
    [
        pytest.param(HANGS, 4096.0, failures.POLICY_SECONDS, id="hangs", marks=pytest.mark.slow),
        pytest.param(GROWS, 390.0, failures.LIMIT_MEMORY, id="grows"),
    ],
)
def test_a_worker_that_hangs_or_grows_is_ended_and_its_request_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: str, memory_mib: float, code: int
) -> None:
    """A real process under the real supervisor's step; only the way to the coordinator is left out."""
    from client import supervisor
    from fed_diffmic.config.policy_limits import Limits

    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a_worker.py").write_text(worker)
    for folder in ("site", "site/run", "site/logs"):
        (tmp_path / folder).mkdir(mode=0o700)
    limits = Limits(grace_s=0.5, memory_mib=memory_mib)
    config = SiteConfig(
        site=SiteGroup(name="a", folder=str(tmp_path / "site")), policy=replace(policy(), limits=limits)
    )
    config = replace(config, coordinator=replace(config.coordinator, insecure=True))

    def start(*_: Any) -> Any:
        env = child_env(tmp_path / "flower")
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "modules"), *sys.path])
        return start_child("a_worker", [str(tmp_path)], env=env, log=tmp_path / "worker.log")

    monkeypatch.setattr(supervisor, "start_worker", start)
    watched = supervisor._Site(config, tmp_path / "site")
    monkeypatch.setattr(watched.node, "step", lambda _: False)
    monkeypatch.setattr(watched.housekeeping, "step", lambda _: None)
    until, first = time.monotonic() + 200, ""
    try:
        while not (tmp_path / "answer").exists() and time.monotonic() < until:
            watched.step(time.time())
            if not first and (tmp_path / "begun").exists():
                first = (tmp_path / "begun").read_text()
            time.sleep(0.05)
    finally:
        watched.worker.stop(0.1)
    assert (tmp_path / "answer").read_text() == str(code)
    assert (tmp_path / "begun").read_text() == first  # not computed again
    assert watched.worker.failures == 0  # not counted as a worker that cannot start
    assert '"kind":"ended"' in (tmp_path / "site" / "audit.jsonl").read_text().replace(" ", "")
