"""Two devices of a site come to what one comes to; a device that is lost ends the update, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.site import Site
from client.tasks import local_round
from client.team import Team, team_of
from client.team_wire import read_task, rows_of, rows_task
from client.watchdog import resident_bytes
from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, MachineError
from fed_diffmic.privacy.dp_sgd import Plan, private_update
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.local import local_update
from fed_diffmic.training.parts import Part, cut
from fed_diffmic.training.stages import Encoded, full_state, load_state
from fed_diffmic.training.update import LocalRound
from tests.client.test_tasks import header
from tests.privacy.models import private_spec, random_examples, stage_module
from tests.toy import toy_site, toy_spec

SGD = {"lr": 0.1, "optimizer": "sgd", "weight_decay": 0.01, "momentum": 0.0, "schedule": "constant", "batch_size": 4}
PRIVACY = PrivacyConfig(
    name="dp_sgd", unit="patient", noise_multiplier=1.0, delta=1e-3, test_seed=5, physical_batch=2, max_images=2
)
PATIENTS = ["a", "a", "a", "b", "c", "c", "d", "e", "e"]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    made = Team(["cpu", "cpu"], tmp_path_factory.mktemp("site"), wait_s=60.0)
    yield made
    made.close()


def both(team, spec, stage, update):
    """The tensors of an update by one device and by two, over how far the largest of them went, and both results."""
    module = stage_module(spec, stage)
    state, results = full_state(module), []
    for shared in (None, team):
        load_state(module.network, state)
        results.append(update(module, LocalRound("s", 1, team=shared)))
    one, two = results
    moved = max(float(np.abs(value - state[name]).max()) for name, value in one.tensors.items())
    apart = max(float(np.abs(value - two.tensors[name]).max()) for name, value in one.tensors.items())
    assert one.tensors.keys() == two.tensors.keys() and moved > 1e-3
    return apart / moved, one, two


@pytest.mark.parametrize(
    ("stage", "encoders"), [("guidance", "train"), ("diffusion", "frozen"), ("diffusion", "train")]
)
def test_two_devices_train_as_one(team, stage, encoders):
    """Seven images in batches of four and three: no device's part is as large as the other's."""
    spec = private_spec("tiny", encoders=encoders, steps=3, **SGD)
    spec = replace(spec, modality="dermoscopy")
    examples = random_examples(spec.model.image_side, 7)
    algorithm = Algorithm(StrategyConfig())
    apart, one, two = both(team, spec, stage, lambda module, at: local_update(module, examples, algorithm, at))
    assert apart < 1e-4
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_two_devices_share_a_private_sum(team, stage, monkeypatch):
    """The same units and the same noise, drawn by the leading process alone and once."""
    spec = private_spec("tiny", encoders="frozen", **SGD)
    examples = random_examples(spec.model.image_side, 9, groups=PATIENTS)
    plan, drawn, real = Plan(5, 0.8, 2, 1.0, 4.0), [], Randomness.normal

    def normal(self, count, device="cpu"):
        drawn.append(count)
        return real(self, count, device)

    monkeypatch.setattr(Randomness, "normal", normal)

    def update(module, at):
        return private_update(module, examples, Algorithm(StrategyConfig()), at, privacy=PRIVACY, plan=plan)

    apart, one, two = both(team, spec, stage, update)
    assert apart < 1e-6
    assert drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :] and sum(drawn) > 0
    assert one.metrics == two.metrics == {"steps": 2.0}


def test_all_that_listens_is_bound_to_loopback(team):
    team.begin(stage_module(private_spec("tiny"), "diffusion"))
    assert team.pids
    for pid in (os.getpid(), *team.pids):
        inodes = set(_sockets(pid))
        for table, loopback in (("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")):
            rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
            assert all(row[1].split(":")[0] == loopback for row in rows if row[9] in inodes)


def _sockets(pid):
    """Inodes of a process's sockets."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder that is being read is one of them
            name = os.readlink(file)
            if name.startswith("socket:["):
                yield name[8:-1]


def test_the_childrens_memory_counts_as_the_workers(team):
    team.begin(stage_module(private_spec("tiny"), "diffusion"))
    own = sum(resident_bytes(pid) for pid in team.pids)
    assert own > 50e6
    assert resident_bytes(os.getpid()) > own


def test_a_device_that_is_lost_ends_the_update_and_the_next_one_has_it_again(team):
    spec = private_spec("tiny", encoders="frozen", steps=2, **SGD)
    module, examples = stage_module(spec, "diffusion"), random_examples(spec.model.image_side, 4)
    team.begin(module)
    lost, real = team.pids, team.gradients
    algorithm, at = Algorithm(StrategyConfig()), LocalRound("s", 1, team=team)

    def dies(*given):
        os.kill(lost[0], signal.SIGKILL)
        return real(*given)

    team.gradients = dies
    try:
        with pytest.raises(MachineError, match=r"site\.device: a process .* on cpu ended \(code -9\)") as raised:
            local_update(module, examples, algorithm, at)
    finally:
        del team.gradients
    assert "logs/device-1.log" in raised.value.remedy
    assert not Path(f"/proc/{lost[0]}").exists() and team.pids == []
    local_update(module, examples, algorithm, at)
    assert team.pids and team.pids != lost


def test_a_child_dies_with_the_worker(tmp_path):
    """Of SIGKILL too, which lets nobody say goodbye; here while it still loads."""
    code = (
        "import os, pathlib, sys, time; from fed_diffmic.transport.processes import start_child\n"
        "child = start_child('client.team_member', ['cpu', sys.argv[1], '1', '2'], env=dict(os.environ),"
        " log=pathlib.Path(sys.argv[1]) / 'log', more=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(worker.stdout.readline())
    until = time.monotonic() + 30
    while time.monotonic() < until and not _has_loaded(child, "torch"):
        time.sleep(0.02)
    assert _runs(child)
    worker.kill()
    worker.wait(timeout=10)
    while time.monotonic() < until and _runs(child):
        time.sleep(0.02)
    assert not _runs(child)


def _has_loaded(pid, name):
    with suppress(FileNotFoundError):
        return name in Path(f"/proc/{pid}/maps").read_text()
    return False


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_network_that_mixes_a_batch_is_refused(tmp_path):
    spec = private_spec("tiny")
    spec = replace(spec, model=replace(spec.model, encoder_norm="train"))
    with pytest.raises(ConfigError, match=r"site\.device=\[cpu, cpu\].*batch norm learns"):
        Team(["cpu", "cpu"], tmp_path).begin(stage_module(spec, "guidance"))


def test_a_site_of_one_device_has_no_team_and_one_of_two_has_one(tmp_path):
    spec = toy_spec()
    site = Site("a", tmp_path / "a", toy_site("a", 1), "cpu", real=True)
    assert local_round(site, spec, header(spec)).team is None
    at = local_round(replace(site, further=("cpu",)), spec, header(spec))
    assert at.team is not None and at.team.size == 2 and str(at.device) == "cpu"
    assert team_of(("cpu", "cpu"), tmp_path) is at.team


def test_a_batch_is_cut_without_loss_and_the_first_has_most():
    part = Part(torch.arange(5.0), torch.arange(5), (torch.arange(10).view(5, 2),), None, 5)
    parts = cut(part, 3)
    assert [len(one) for one in parts] == [2, 2, 1] and {one.whole for one in parts} == {5}
    assert torch.equal(torch.cat([one.inputs for one in parts]), part.inputs)
    assert torch.equal(torch.cat([one.draws[0] for one in parts]), part.draws[0])
    assert [len(one) for one in cut(replace(part, labels=torch.arange(1), whole=1), 2)] == [1, 0]


def test_a_task_crosses_as_it_is(tmp_path):
    inputs = Encoded(torch.rand(2, 3, 4, 4), torch.rand(2, 0, 5))
    sent = rows_task("units", inputs, {"labels": torch.tensor([1, 2]), "offset": None}, (torch.zeros(2, 1),), bound=0.5)
    path = tmp_path / "pipe"
    path.write_bytes(2 * sent.to_bytes())
    with path.open("rb") as stream:
        for _ in range(2):
            task = read_task(stream)
            found, draws, rest = rows_of(task, torch.device("cpu"))
            assert type(found) is Encoded and all(torch.equal(*pair) for pair in zip(found, inputs, strict=True))
            assert task.facts["bound"] == 0.5 and rest.keys() == {"labels"} and len(draws) == 1
        assert read_task(stream) is None
