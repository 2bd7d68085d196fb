"""The bill of materials says what deploy/requirements.txt says, and the audit never calls silence a clean bill."""

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
LIST = DEPLOY / "requirements.txt"


def module(name):
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", DEPLOY / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


sbom, audit = module("sbom"), module("audit")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sbom")
    assert sbom.main([str(LIST), "--out", str(folder), "--version", "1.2.3"]) == 0
    return folder


def test_every_package_of_the_list_is_a_component_with_its_hashes_and_no_other(written):
    bill = json.loads((written / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["version"]) == (
        "CycloneDX", "1.6", "1.2.3",
    )  # fmt: skip
    text = LIST.read_text()
    wanted = re.findall(r"^([\w.-]+)==([^ ]+)", text, re.MULTILINE)
    assert len(wanted) > 100
    assert sorted((one["name"], one["version"]) for one in bill["components"]) == sorted(wanted)
    hashes = {value["content"] for one in bill["components"] for value in one["hashes"]}
    assert hashes == set(re.findall(r"sha256:(\w{64})", text))
    assert all(one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bill["components"])
    [root] = [one for one in bill["dependencies"] if one["ref"] == "fed-diffmic@1.2.3"]
    assert len(root["dependsOn"]) == len(wanted)


def test_licences_are_those_that_the_installed_packages_say(written):
    bill = {one["name"]: one for one in json.loads((written / "sbom.cdx.json").read_text())["components"]}
    assert metadata.metadata("cryptography")["License-Expression"] == "Apache-2.0 OR BSD-3-Clause"
    assert bill["cryptography"]["licenses"] == [{"expression": "Apache-2.0 OR BSD-3-Clause"}]
    lines = (written / "licences.txt").read_text().splitlines()
    assert len(lines) == len(sbom.read_pins(LIST))
    assert next(line for line in lines if line.startswith("flwr ")).split()[-1] == "Apache-2.0"
    assert sbom.licence(sbom.Pin("flwr", "0.0.1", "", ())) == sbom.UNKNOWN  # another version may have another


def test_the_same_list_gives_the_same_bytes_and_another_another_number(written, tmp_path):
    for folder, text in (("a", LIST.read_text()), ("b", LIST.read_text().replace("alembic==1", "alembic==2"))):
        (tmp_path / f"{folder}.txt").write_text(text)
        sbom.main([str(tmp_path / f"{folder}.txt"), "--out", str(tmp_path / folder), "--version", "1.2.3"])
    first, same, other = ((path / "sbom.cdx.json").read_text() for path in (written, tmp_path / "a", tmp_path / "b"))
    assert first == same
    assert json.loads(first)["serialNumber"] != json.loads(other)["serialNumber"]
    assert "timestamp" not in first


@pytest.mark.parametrize("text", ["a==1\n", "a>=1 \\\n    --hash=sha256:" + "0" * 64, "a==1 \\\n    --hash=md5:00"])
def test_a_list_that_is_not_pinned_is_refused(text, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match="not a package with a version and hashes"):
        sbom.read_pins(tmp_path / "list")


GOOD = {"name": "a", "version": "1", "vulns": []}
WEAK = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([GOOD], 0, "1 of 1 packages audited, 0 known weaknesses"),
        ([GOOD, WEAK], 1, "b 1: PYSEC-1, mended in 2"),
        ([GOOD, SKIPPED], 2, "NOT AUDITED: 1 packages"),
        ([WEAK, SKIPPED], 1, "NOT AUDITED: 1 packages"),
        ([], 2, "NOT AUDITED"),
    ],
)
def test_what_was_not_audited_is_never_clean(packages, code, words):
    found, said = audit.judge({"dependencies": packages})
    assert (found, words in said) == (code, True), said


@pytest.mark.parametrize(
    ("program", "words"),
    [("import time; time.sleep(60)", "within 1 s"), ("raise SystemExit('no route')", "could not be asked (no route)")],
)
def test_a_service_that_does_not_answer_is_waited_for_within_bounds(program, words, tmp_path, monkeypatch):
    (tmp_path / "pip_audit.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, said = audit.audit(LIST, 1.0 if "sleep" in program else 60.0)
    assert (code, words in said) == (2, True), said
