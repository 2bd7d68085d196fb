"""A dossier: every number stands in a file of the run, few images are kept back, markup is text, a change is seen."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.cli import main
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import atomic_write, read_json, write_json
from fed_diffmic.provision.keys import fingerprint, private_bytes, public_text
from fed_diffmic.release.dossier.facts import Sources, pointer, resolve
from fed_diffmic.release.dossier.write import (
    DOMAIN,
    build,
    cells,
    unsourced,
    verify_dossier,
    write_dossier,
)
from fed_diffmic.release.provenance import sign_statement, verify_statement
from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY
from tests.release.dossier.made import (
    CLAIM,
    CLASSES,
    SITES,
    deployed_summary,
    simulated_summary,
    write_deployment,
    write_simulation,
)

KEY, OTHER = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return simulated_summary()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, summary: dict[str, Any]) -> Path:
    return write_simulation(tmp_path_factory.mktemp("run") / "tiny", summary)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deployment(tmp_path_factory.mktemp("run") / "tiny", KEY)


def numbers(node: Any, inside: str = "") -> Iterator[str]:
    """Places of every number that is no part of a fact."""
    if isinstance(node, dict) and not ("file" in node and "at" in node):
        for key, value in node.items():
            yield from numbers(value, f"{inside}/{key}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from numbers(value, f"{inside}/{place}")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield inside


def test_every_number_of_the_json_stands_where_it_says(simulated: Path, deployed: Path) -> None:
    for run in (simulated, deployed):
        content = build(run)
        found = list(cells({"sections": content["sections"], "drafts": content["drafts"]}))
        assert len(found) > 80 and unsourced(content, run) == []
        assert list(numbers(content)) == ["/format"]
        strict = json.loads(json.dumps(content, allow_nan=False))
        changed = next(c for c in cells(strict["sections"]) if isinstance(c.get("value"), float))
        changed["value"] += 0.001
        assert unsourced(strict, run)  # and a number that does not is found


def test_every_number_of_the_page_is_a_fact(simulated: Path, tmp_path: Path) -> None:
    write_dossier(simulated, tmp_path)
    page = (tmp_path / "dossier.html").read_text(encoding="utf-8")
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and "default-src 'none'" in page
    body = page[: page.index("Files that these facts stand in")]
    files = Sources(simulated)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    loose = []
    for row in rows:
        for place, (title, said) in enumerate(re.findall(r'<td(?: title="([^"]*)")?>(.*?)</td>', row, re.S)):
            if title:
                file, _, at = unescape(title).partition(" ")
                assert "kept back" in said or resolve(files.tree(file), at) is not None
            elif place and re.search(r"\d", said):
                loose.append(said)
    assert len(rows) > 60 and set(loose) <= {"b", "a"}
    content = read_json(tmp_path / "dossier.json")["sections"]
    known = {text for cell in cells(content) for text in shown_of(cell)}
    assert set(re.findall(r"\b0\.\d{3}\b", body)) <= known


def shown_of(cell: Any) -> list[str]:
    return [f"{cell[key]:.3f}" for key in ("value", "low", "high") if isinstance(cell.get(key), float)]


def block_of(content: dict[str, Any], part: str, caption: str) -> dict[str, Any]:
    (section,) = [s for s in content["sections"] if s["id"] == part]
    return next(b for b in section["blocks"] if b["kind"] == "table" and b["caption"].startswith(caption))


def test_few_images_are_kept_back_and_so_is_what_gives_them_away(simulated: Path, summary: dict[str, Any]) -> None:
    content = build(simulated)
    for row in block_of(content, "data", "Training images by class")["rows"]:
        truth = list(summary["sites"][row[0]]["class_counts"].values())
        hidden = [n for n, cell in zip(truth, row[1:], strict=True) if "withheld" in cell]
        assert all(cell.get("value", 10) >= 10 or cell["value"] == 0 for cell in row[1:])
        assert not hidden or (len(hidden) > 1 and sum(hidden) >= 10)
    rows = block_of(content, "evaluation", "Metrics of subgroups")["rows"]
    for site in SITES:  # scanner b is of four images: kept back by the run; then neither may the other be told
        own = {row[2]: row[3] for row in rows if row[:2] == [site, "scanner"]}
        assert "withheld" in own["b"] and "withheld" in own["a"]
    assert any("value" in row[3] for row in rows if row[1] == "sex")
    told = {cell["at"]: cell for cell in cells(content["sections"]) if "/per_class/" in cell["at"]}
    block = summary["global"]["test"]["per_class"]
    for name, cell in block.items():
        if 0 < cell["positives"] < 10:
            keys = ("positives", "sensitivity", "auroc")
            assert all("withheld" in told[f"/global/test/per_class/{name}/{key}"] for key in keys)


def test_a_masked_run_shows_what_its_sites_are_together_and_says_why_no_site_is_shown(tmp_path: Path) -> None:
    """Two sites are in the sum, and one class has few test images there."""
    cell = {"auroc": 0.9, AT_SPECIFICITY: 0.7, AT_SENSITIVITY: 0.6}
    per_class = {name: {**cell, "positives": 40} for name in CLASSES} | {CLASSES[0]: {**cell, "positives": 3}}
    metrics = {"accuracy": 0.81, "balanced_accuracy": 0.72, "auroc_macro": 0.93, "ece": 0.05}
    together = {"sites": list(SITES[:2]), "n": 243, **metrics, "per_class": per_class}
    run = write_deployment(tmp_path / "tiny", KEY)
    write_json(run / "summary.json", {**deployed_summary(), "matrix": {}, "together": together})
    content = build(run)
    assert unsourced(content, run) == [] and list(numbers(content)) == ["/format"]
    rows = block_of(content, "evaluation", "Test images of the sites of one masked sum together")["rows"]
    assert [cell["value"] for _, cell in rows] == [243, *metrics.values()]
    lines = block_of(content, "evaluation", "Each class against the rest, test images of the sum")["rows"]
    hidden = {line[0]: ["withheld" in cell for cell in line[1:]] for line in lines}
    few = [name for name, cells in hidden.items() if all(cells)]
    assert len(few) == 2 and CLASSES[0] in few[0] + few[1], "the second, for the first could be had by subtraction"
    assert all(not any(cells) for name, cells in hidden.items() if name not in few)
    said = json.dumps([s for s in content["sections"] if s["id"] == "evaluation"])
    assert f"test images of {', '.join(SITES[:2])} together" in said and "no site's own figures stand here" in said
    assert f"No figure on test images is known of {', '.join(SITES[2:])}." in said and "each site's own" not in said


def test_no_total_over_sites_gives_away_what_is_kept_back_at_one(tmp_path: Path, summary: dict[str, Any]) -> None:
    """All validation images less those of the other sites are those of the one that has few."""
    few = copy.deepcopy(summary)
    for site in SITES:
        few["sites"][site] |= {"n_train": 100, "n_val": 40, "n_test": 40}
    open_ = build(write_simulation(tmp_path / "many", few))
    for split, places in {
        "val": ("/calibration/n", "/sureness/measures/0/n", "/sureness/measures/0/errors"),
        "test": ("/global/test/per_class/nv/positives",),
    }.items():
        one = copy.deepcopy(few)
        one["sites"][SITES[0]][f"n_{split}"] = 5
        kept = build(write_simulation(tmp_path / split, one))
        for place in places:
            before, after = (
                [cell for cell in cells(content["sections"]) if cell["at"] == place] for content in (open_, kept)
            )
            assert len(before) == len(after) == 1 and "value" in before[0] and "withheld" in after[0], place


def test_markup_in_names_is_text(tmp_path: Path, summary: dict[str, Any]) -> None:
    bad = "<img src=x onerror=alert(1)>"
    text = json.dumps(summary).replace(f'"{SITES[0]}"', json.dumps(bad)).replace('"mel"', '"me|`l"')
    run = write_simulation(tmp_path / "run", {**json.loads(text), "class_names": {"nv": "<b>\n| mole"}})
    write_dossier(run, tmp_path / "out")
    page = (tmp_path / "out" / "dossier.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<b>\n|" not in page and "&lt;img src=x" in page
    for name in ("dpia.md", "annex-iv.md"):
        draft = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "<img" not in draft.replace("\\<img", "") and "\\<img src=x" in draft
        for line in draft.splitlines():
            assert not line.startswith("|") or line.endswith("|")


def test_a_dossier_that_came_names_no_file_outside_the_run(simulated: Path, tmp_path: Path) -> None:
    """Where somebody looks its numbers up, it would be read (and ``/dev/zero`` has no last line)."""
    write_json(tmp_path / "secret.json", {"a": 5})
    for file in (str(tmp_path / "secret.json"), f"{'../' * 40}{tmp_path}/secret.json"):
        for cell in ({"at": "/a", "value": 5}, {"at": "lines", "value": 1}):
            content = {"sections": [{"file": file, **cell}], "drafts": []}
            assert len(unsourced(content, simulated)) == 1
    content["sections"][0]["file"] = "summary.json"
    assert len(unsourced(content, simulated)) == 1


def test_the_same_run_gives_the_same_bytes(simulated: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        made = write_dossier(simulated, folder, signer=KEY)
    assert made.files == ("dossier.html", "dossier.json", "dpia.md", "annex-iv.md", "signature.json")
    for name in made.files[:-1]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_every_change_of_a_signed_dossier_is_seen(simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = write_dossier(simulated, out, signer=KEY)
    assert verify_dossier(out, KEY.public_key())[1] == fingerprint(KEY.public_key())
    with pytest.raises(ModelFileError, match="is signed by the key"):
        verify_dossier(out, OTHER.public_key())
    for name in made.files:
        data = (out / name).read_bytes()
        (out / name).write_bytes(data.replace(b"a", b"b", 1))
        with pytest.raises(ModelFileError):
            verify_dossier(out, KEY.public_key())
        (out / name).unlink()
        with pytest.raises(ModelFileError):
            verify_dossier(out)
        (out / name).write_bytes(data)
    (out / "more.pdf").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"more\.pdf"):
        verify_dossier(out)
    (out / "more.pdf").unlink()
    verify_dossier(out)
    write_dossier(simulated, out)  # made again without a key: the old signature does not stay
    with pytest.raises(ModelFileError, match="nobody signed"):
        verify_dossier(out)


def test_a_signature_over_something_else_does_not_pass_for_a_dossiers(tmp_path: Path) -> None:
    statement = {"kind": "fed_diffmic dossier", "run": "x", "files": {}}
    sign_statement(tmp_path / "signature.json", statement, KEY)
    with pytest.raises(ModelFileError, match="does not hold"):
        verify_dossier(tmp_path)
    sign_statement(tmp_path / "signature.json", statement, KEY, domain=DOMAIN)
    verify_dossier(tmp_path)
    with pytest.raises(ModelFileError, match="does not hold"):
        verify_statement(tmp_path / "signature.json")


def words(content: dict[str, Any]) -> str:
    return json.dumps(content["sections"])


def test_a_coordinators_run_is_verified_when_the_dossier_is_made(deployed: Path, tmp_path: Path) -> None:
    content = build(deployed, public_key=KEY.public_key())
    checks = block_of(content, "provenance", "Verified when")
    assert [row[1]["holds"] for row in checks["rows"]] == [True, True]
    assert checks["rows"][1][2] == fingerprint(KEY.public_key())
    assert f"No figure on test images is known of {', '.join(SITES[2:])}." in words(content)
    with pytest.raises(ModelFileError, match="is signed by the key"):
        build(deployed, public_key=OTHER.public_key())
    run = tmp_path / "run"
    shutil.copytree(deployed, run)
    value = read_json(run / "final" / "model.json")
    write_json(run / "final" / "model.json", {**value, "bytes_sent": 1})
    with pytest.raises(ModelFileError, match="not the one that was signed"):
        build(run)


def test_counts_that_a_site_kept_back_stay_so(deployed: Path) -> None:
    row = next(r for r in block_of(build(deployed), "data", "Training images by class")["rows"] if r[0] == SITES[1])
    told = [cell.get("value") for cell in row[1:]]
    assert told[0] is told[1] is told[4] is None and {330, 400, 500} & {n for n in told if n}


def test_privacy_and_audits_are_what_the_files_say_or_not_tested(simulated: Path, deployed: Path) -> None:
    content = build(simulated)
    row = block_of(content, "privacy", "Differential privacy")["rows"][0]
    assert row[0] == SITES[0] and [c["value"] for c in row[1:]] == [
        CLAIM[key] for key in ("guarantee", "unit", "epsilon_run", "delta", "epsilon_total", "budget")
    ]
    said = words(content)
    assert f"No privacy is claimed by {', '.join(SITES[1:])}" in said and "metrics over its validation" in said
    assert "This run was simulated" in said and "signed audit log" in words(build(deployed))
    audit = block_of(content, "threats", "Result, from audits/privacy.json")["rows"]
    assert audit[0][1]["value"] == "consistent" and [r[0] for r in audit if "bound" in r[0]] == [
        "attacks / loss / bound"
    ]
    assert "Not tested: the run's folder holds no audits/inversion.json" in said
    assert "Not tested: the run's folder holds no audits/privacy.json" in words(build(deployed))
    assert "trained without differential privacy" in words(build(deployed))


def test_a_claim_without_a_guarantee_is_no_number(tmp_path: Path, summary: dict[str, Any]) -> None:
    run = write_simulation(tmp_path / "run", summary)
    broken = {**CLAIM, "guarantee": False, "epsilon_run": -1.0, "epsilon_total": -1.0}
    value = read_json(run / "final" / "model.json")
    value["history"][0]["privacy"] = {SITES[0]: broken}
    write_json(run / "final" / "model.json", value)
    content = build(run)
    row = block_of(content, "privacy", "Differential privacy")["rows"][0]
    assert row[1]["value"] is False and row[3] == row[5] == "no bound"
    assert f"No guarantee holds at {SITES[0]}" in words(content) and unsourced(content, run) == []


def test_old_runs_say_what_is_missing(tmp_path: Path, summary: dict[str, Any]) -> None:
    new = ("operating_points", "subgroups", "sureness", "matrix", "class_names", "modality", "calibration", "versions")
    old = {key: value for key, value in copy.deepcopy(summary).items() if key not in new}
    run = write_simulation(tmp_path / "run", old)
    content = build(run)
    assert unsourced(content, run) == []
    said = words(content)
    for text in ("did not measure them", "Subgroups: none", "this run has none", "no measure of it was tested"):
        assert text in said
    for name in ("summary.json", "config.yaml", "audits/privacy.json"):
        (run / name).unlink()
    bare = build(run)
    assert "holds no summary.json" in words(bare) and "holds no config.yaml" in words(bare)
    assert unsourced(bare, run) == []
    with pytest.raises(ModelFileError, match="holds no final model"):
        build(tmp_path)


def test_blanks_are_for_people_and_the_headings_are_those_of_the_law(simulated: Path, tmp_path: Path) -> None:
    write_dossier(simulated, tmp_path)
    dpia, annex = ((tmp_path / name).read_text(encoding="utf-8") for name in ("dpia.md", "annex-iv.md"))
    assert all(f"35(7)({letter})" in dpia.replace("\\", "") for letter in "abcd") and dpia.count("________") > 8
    assert re.findall(r"^## (\d)\.", annex, re.M) == list("123456789") and annex.count("________") > 12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("a~/01", max_size=6), min_size=1, max_size=4), st.integers())
def test_a_pointer_leads_back_to_where_it_was_taken(place: list[str], value: int) -> None:
    tree: Any = value
    for step in reversed(place):
        tree = {step: tree}
    assert resolve(tree, pointer(place)) == value


def test_the_command_writes_verifies_and_looks_numbers_up(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, out = tmp_path / "coordinator.key", tmp_path / "out"
    atomic_write(key, private_bytes(KEY), mode=0o600)
    (tmp_path / "coordinator.pub").write_text(public_text(KEY.public_key()) + "\n")
    bill = {"components": [{"name": "torch", "version": "2.15", "licenses": [{"license": {"id": "BSD-3-Clause"}}]}]}
    write_json(tmp_path / "bill.json", bill)
    run = ["dossier", str(simulated), "--out", str(out), "--sign", str(key), "--sbom", str(tmp_path / "bill.json")]
    assert main(run) == 0
    assert (out / "sbom.cdx.json").read_bytes() == (tmp_path / "bill.json").read_bytes()
    assert "BSD-3-Clause" in (out / "dossier.html").read_text(encoding="utf-8")
    verify = ["dossier", str(out), "--verify", "--key", str(tmp_path / "coordinator.pub")]
    assert main([*verify, "--against", str(simulated)]) == 0
    assert "do not stand in the files of" in capsys.readouterr().out
    other = tmp_path / "other"
    shutil.copytree(simulated, other)
    told = read_json(other / "summary.json")
    told["global"]["test"]["accuracy"]["value"] = 0.999
    write_json(other / "summary.json", told)
    assert main([*verify, "--against", str(other)]) == 4
    assert "/global/test/accuracy" in capsys.readouterr().out
    assert main([*verify, "--out", str(other)]) == 2 and main(["dossier", str(tmp_path / "none")]) == 2
    assert main(["dossier", str(simulated), "--out", str(tmp_path / "plain")]) == 0
    assert "Nobody signed it" in capsys.readouterr().out
