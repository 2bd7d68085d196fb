"""Tables with one institution left out: no image and no lesion is on both sides, and none is lost unsaid."""

import csv
from pathlib import Path

from benchmarks.left_out import write


def test_each_institution_is_once_from_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    seen = [
        ("L1", "a", "mel", "north"),
        ("L1", "b", "mel", "south"),
        ("L2", "c", "nv", "south"),
        ("L3", "d", "nv", "north"),
    ]
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    lines += [f"{lesion},{image},{dx},x,1,male,back,{place}" for lesion, image, dx, place in seen]
    lines.append("L9,absent,nv,x,1,male,back,west")
    (root / "HAM10000_metadata.csv").write_text("\n".join(lines))
    for _, image, _, _ in seen:
        (root / "images" / f"{image}.jpg").write_bytes(b"picture of a test")
    assert write(root, tmp_path / "out") == ["north", "south"]  # no image of the west is there

    def read(*parts: str) -> list[tuple[str, str, str, str]]:
        with tmp_path.joinpath("out", *parts, "manifest.csv").open(newline="") as file:
            return [tuple(row.values()) for row in csv.DictReader(file)]

    own = {"north": [("images/d.jpg", "nv", "L3", "north")], "south": [("images/c.jpg", "nv", "L2", "south")]}
    for name, rest in own.items():
        assert read(name, "elsewhere") == rest, "a lesion that others have is not from elsewhere"
        others = read(name)
        assert {row[3] for row in others} == {"north", "south"} - {name} and len(others) == 2
        for row in others:
            assert (tmp_path / "out" / name / row[0]).read_bytes() == b"picture of a test"
