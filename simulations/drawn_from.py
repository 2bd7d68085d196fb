"""What a run was drawn from: a line for each image in the run's folder, so that a resumed run is of the same data.

The file holds no name: an image is its content key, and its label, group, institution and own split are a digest. A
patient's number could still be guessed from a digest by trying, so the file is readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_diffmic.config.folders import holds_run
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import DataError, ModelFileError
from fed_diffmic.files import read_json, write_json

FILE = "drawn_from.json"
FORMAT = 1


def keep_or_check(run_dir: Path, manifest: Manifest) -> None:
    """Write down what a run is drawn from when it starts; hold it to that from then on.

    Args:
        run_dir: the run's folder; one that no run has marked yet may be started again with mended data.
        manifest: all images, content keys filled in.

    Raises:
        DataError: the data are others than those with which the run was started: says which table and how much.
        ModelFileError: the file is damaged.
        MachineError: it cannot be written.
    """
    path, images = run_dir / FILE, image_lines(manifest)
    facts = {"format": FORMAT, "task": manifest.task, "classes": list(manifest.classes), "images": images}
    if not (path.exists() and holds_run(run_dir)):
        write_json(path, facts, mode=0o600)
        return
    said = _differences(path, facts)
    if said:
        raise DataError(
            f"{manifest.source or manifest.name} changed since this run was started: {'; '.join(said)}. Sites and "
            "splits would be drawn again, and test images could become training images",
            "Put the table and the images back as they were and resume, or start another run in another run.dir.",
        )


def hold_to(run_dir: Path, other: Path, since: str) -> None:
    """Refuse what would be of other data than another part of the same experiment.

    Args:
        run_dir: of what has its data drawn and is not begun.
        other: folder that holds what an earlier part was drawn from.
        since: what that part is called.

    Raises:
        DataError: they differ: says how much.
        ModelFileError: a file is damaged.
    """
    said = _differences(other / FILE, read_json(run_dir / FILE))
    if said:
        raise DataError(
            f"the data changed since {since} was begun: {'; '.join(said)}. Runs of one experiment that are of "
            "different data cannot be compared",
            "Put the table and the images back as they were and give the same command again, or start the experiment "
            "anew in another --out.",
        )


def _differences(path: Path, now: Mapping[str, Any]) -> list[str]:
    """How what a run was drawn from differs from what is there now, in words.

    Raises:
        ModelFileError: the file is damaged.
    """
    before = read_json(path)
    try:
        said = changes(before["images"], now["images"])
        if before["task"] != now["task"] or before["classes"] != now["classes"]:
            said.append("the classes or the task are others")
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} does not hold what a run was drawn from", "Start the run again in another run.dir."
        ) from error
    return said


def image_lines(manifest: Manifest) -> dict[str, list[str]]:
    """Content key of each image -> digests of what the table says of it (more than one where it stands twice)."""
    table = manifest.table
    columns = [table[name].tolist() for name in ("label", "group", "institution", "split")]
    lines: dict[str, list[str]] = {}
    for key, *said in zip(table["key"].tolist(), *columns, strict=True):
        digest = hashlib.sha256(json.dumps([key, *said]).encode()).hexdigest()[:16]
        lines.setdefault(str(key), []).append(digest)
    return {key: sorted(digests) for key, digests in lines.items()}


def changes(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """How two such sets of lines differ, in words; nothing where they are alike."""
    both = before.keys() & now.keys()
    counts = {
        "image(s) that it had not": sum(len(now[key]) for key in now.keys() - both),
        "image(s) fewer": sum(len(before[key]) for key in before.keys() - both),
        "image(s) with another label, patient, institution or split": sum(
            sum((Counter(now[key]) - Counter(before[key])).values()) or len(before[key]) - len(now[key])
            for key in both
            if before[key] != now[key]
        ),
    }
    return [f"{count} {what}" for what, count in counts.items() if count]
