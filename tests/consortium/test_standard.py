"""The shipped policy on real processes: an honest run of a shipped model asks nothing that ``standard`` refuses.

A site says which run, data set and classes it allows, and nothing else. Every floor is on, the test for isolation among
them, and the study is agreed to by rule.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.consortium.harness import BIN, CLASSES, SITES, Lines, consortium, environment, summary, write_data

COMMON = {
    "seed": 5,
    "model": "tiny",
    "stages": "tiny",
    "model_settings": {},
    "stage_settings": {"guidance": {"rounds": 4, "epochs": 2}, "diffusion": {"rounds": 2, "epochs": 4}},
}
POLICY = {"name": "standard", "runs": ["pilot"], "datasets": ["table"], "classes": CLASSES}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_honest_run_is_refused_nothing_under_the_shipped_policy(tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=105)
    with consortium(tmp_path / "made", tmp_path / "data", COMMON) as made:
        made.new_run("pilot")
        for site in SITES:
            value = yaml.safe_load(made.site_yaml[site].read_text(encoding="utf-8"))
            made.site_yaml[site].write_text(yaml.safe_dump({**value, "policy": POLICY}), encoding="utf-8")
            made.start_site(site)
        server = made.start_server()
        assert server.wait(800) == 0, server.said()
        found = summary(made.run_dir)
        assert found["status"] == "done" and [len(row["sites"]) for row in found["rounds"]] == [3] * 6
        assert not [event for event in made.events.read() if event["kind"] in ("site_refused", "site_failed")]
        for site in SITES:
            kinds = [line["kind"] for line in Lines(made.site_folder(site) / "audit.jsonl").read()]
            assert "refusal" not in kinds and kinds.count("approval") == 1
            # 15 test images, 5 of each class: the metrics leave, the counts of classes are too small to
            cell = found["matrix"]["diffusion"][site]
            assert cell["n"] == 15 and not cell["complete"] and set(cell["positives"].values()) == {None}
        proof = subprocess.run(
            [
                str(BIN / "fed-diffmic"), "audit", "verify", str(made.site_folder(SITES[0]) / "audit.jsonl"),
                "--key", str(made.folder / "keys" / "0.key.pub"), "--against", str(made.run_dir / "audit.jsonl"),
                "--against-key", str(made.coordinator_key), "--run", "pilot",
            ],
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert proof.returncode == 0, proof.stdout + proof.stderr
        assert json.loads((made.run_dir / "final" / "provenance.json").read_text())
        assert set(made.stop_sites()) == {143}
