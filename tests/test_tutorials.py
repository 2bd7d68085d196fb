"""The tutorials, typed line by line: what is answered is what the page says."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fed_diffmic.api.settings import configuration
from fed_diffmic.cli import main
from fed_diffmic.config.compose import compose_text
from server.cli import main as flower_server
from tests.documents import ROOT, Block, blocks, commands, script_of

TUTORIALS = ROOT / "docs" / "tutorials"
NOTEBOOKS = ROOT / "docs" / "notebooks"
PROGRAMS: dict[str, Callable[[list[str]], int]] = {"fed-diffmic": main, "flower-server": flower_server}
DIGITS = re.compile(r"(?:\d{5}[- ]){5}\d{5}")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:T[\d:+.]+)?")
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
"""``...`` stands for anything; how lines are broken does not matter."""


class Phone(io.StringIO):
    """Somebody at a terminal who types the digits that were last read out on the screen."""

    def __init__(self, screen: io.StringIO) -> None:
        super().__init__()
        self.screen = screen

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        typed = f"{DIGITS.findall(self.screen.getvalue())[-1]}\n"
        self.screen.write(typed)
        return typed


class Typist:
    """Types a page's blocks in the current folder, and keeps what stood on the screen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.screen = io.StringIO()
        self.names: dict[str, object] = {}
        patch.setattr(sys, "stdin", Phone(self.screen))

    def type(self, block: Block) -> None:
        """Run a block, or compare the one before it with what it says."""
        if block.kind == "text":
            agree(block.body, self.said, block)
        elif block.kind in ("yaml", "csv"):
            Path(block.title).write_text(block.body)
        elif block.kind == "python":
            code = compile("\n" * (block.line - 1) + block.body, str(block.page), "exec")
            self.watch(lambda: exec(code, self.names))
        elif block.kind == "sh":
            for words in commands(script_of(block)):
                self.run(words, block)
        else:
            for typed, answer in exchanges(block):
                self.run(next(commands(typed)), block)
                agree(answer, self.said, block)

    def run(self, words: list[str], block: Block) -> None:
        code = [0]
        if words[0] in PROGRAMS:
            self.watch(lambda: code.__setitem__(0, PROGRAMS[words[0]](words[1:])))
        else:
            code[0] = subprocess.run(words, timeout=60).returncode
        assert code[0] == 0, f"{block}: {' '.join(words)}\n{self.said}"

    def watch(self, body: Callable[[], object]) -> None:
        start = self.screen.tell()
        with contextlib.redirect_stdout(self.screen), contextlib.redirect_stderr(self.screen):
            body()
        self.said = self.screen.getvalue()[start:]


def exchanges(block: Block) -> list[tuple[str, str]]:
    """Each command of a ``console`` block, with the answer that stands below it."""
    parts = re.split(r"^\$ ", block.body.replace("\\\n", " "), flags=re.M)
    assert parts[0] == "", f"{block} begins with no command"
    return [(part.split("\n", 1)[0], part.split("\n", 1)[1]) for part in parts[1:]]


def agree(wanted: str, said: str, block: Block) -> None:
    """The screen shows what the page says, digits and dates apart."""
    wanted, said = (DATE.sub("DATE", DIGITS.sub("DIGITS", text)) for text in (wanted, said))
    assert doctest.OutputChecker().check_output(wanted, said, SAME), f"{block} says\n{wanted}\nand there stood\n{said}"


def type_page(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Typist:
    """A tutorial from its first block to its last; blocks of several terminals are left out."""
    patch.chdir(folder)
    patch.setenv("COLUMNS", "100")
    typist = Typist(patch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(TUTORIALS / name):
            if block.kind != "sh" or not block.title:
                typist.type(block)
    return typist


@pytest.fixture(scope="module")
def researcher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Typist]:
    """The folder in which the researcher's tutorial was typed, and who typed it."""
    folder = tmp_path_factory.mktemp("researcher")
    with pytest.MonkeyPatch.context() as patch:
        return folder, type_page("researcher.md", folder, patch)


def test_the_tutorial_of_the_researcher(researcher: tuple[Path, Typist]) -> None:
    folder, typist = researcher
    assert (folder / "auroc.png").stat().st_size > 5000
    found = typist.names["found"].to_pandas()  # type: ignore[attr-defined]
    written = pd.read_csv(folder / "predictions.csv").drop(columns="unreadable").astype({"decided": str})
    pd.testing.assert_frame_equal(written, found, atol=1e-9)
    assert (folder / "second" / "compare.html").is_file()


def test_the_tutorial_of_the_hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_page("hospital.md", tmp_path, monkeypatch)
    assert (tmp_path / "site" / "site.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "study.json").is_file()


def test_the_page_of_provisioning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands in their order, with what people do between them: edit a file, mail the public key."""
    monkeypatch.chdir(tmp_path)
    typist = Typist(monkeypatch)
    Path("x.csv").write_text("image,label\n")
    count = 0
    for block in blocks(ROOT / "docs" / "provisioning.md"):
        if block.kind == "yaml":
            said = yaml.safe_load(block.body)["consortium"]
            file = tmp_path / "coordinator" / "server.yaml"
            text = file.read_text().replace("classes: null", f"classes: {said['classes']}")
            file.write_text(text.replace("task: null", f"task: {said['task']}"))
        elif block.kind == "console" and block.body.startswith("$"):
            typist.type(replace(block, body=block.body.replace("/data/x.csv", "x.csv")))
            count += 1
            if "site-key" in block.body:
                shutil.copy("site/site.key.pub", ".")
    assert count >= 8
    assert yaml.safe_load(Path("site/site.yaml").read_text())["dataset"]["classes"] == ["benign", "malignant"]


def cells(notebook: str) -> list[str]:
    """The code of a notebook."""
    read = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in read["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", ["researcher", "hospital"])
def test_the_cells_of_a_notebook(
    notebook: str, researcher: tuple[Path, Typist], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of the tutorial, whose runs the notebooks take where they are."""
    monkeypatch.chdir(researcher[0])
    names: dict[str, object] = {"display": lambda value: print(repr(value)[:80])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, cell in enumerate(cells(notebook)):
            exec(compile(cell, f"{notebook}.ipynb, code cell {number}", "exec"), names)
    check_notebook(notebook, names)


def check_notebook(notebook: str, names: dict[str, object]) -> None:
    """What a notebook's names hold at its end."""
    import matplotlib.pyplot as plt

    assert plt.get_fignums(), "it draws nothing"
    plt.close("all")
    if notebook == "researcher":
        table = names["table"]
        (first,) = [block for block in blocks(TUTORIALS / "researcher.md") if block.title == "first.yaml"]
        assert list(table.index) == ["fedavg", "fedprox"] and table["n"].gt(0).all()  # type: ignore[attr-defined]
        assert compose_text(first.body, []) == configuration(names["settings"], {})  # type: ignore[arg-type]
    else:
        assert len(names["found"]) == 6  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["researcher", "hospital"])
def test_a_notebook_in_a_kernel_of_its_own_and_an_empty_folder(notebook: str, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    read = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4)
    NotebookClient(read, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [o for cell in read.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures


def test_notebooks_are_kept_without_outputs() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        read = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in read["cells"] if cell["cell_type"] == "code"]
        assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), path
        assert read["cells"][0]["source"][0].startswith("# ")
        assert "not a medical device" in "".join(read["cells"][0]["source"]).lower()


def test_an_answer_that_differs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typist = Typist(monkeypatch)

    def console(folder: str, answer: str) -> Block:
        return Block(ROOT / "README.md", 1, "console", "", f"$ fed-diffmic provision ca {folder}\n{answer}\n")

    typist.type(console("ca", "ca: ca.crt...valid until ..."))
    with pytest.raises(AssertionError, match="and there stood"):
        typist.type(console("other", "ca: ca.crt...valid until ..."))
    with pytest.raises(AssertionError, match="error FD002"):
        typist.type(
            Block(ROOT / "README.md", 1, "sh", "", "fed-diffmic provision kit A --out x.kit --config none.yaml\n")
        )
