"""``import fed_diffmic`` costs nothing, and every name is there when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fed_diffmic as fd

ROOT = Path(__file__).parents[2]
STUB = ROOT / "fed_diffmic" / "__init__.pyi"


def test_the_import_is_quick_and_loads_nothing_heavy():
    program = (
        "import sys, time; start = time.perf_counter(); import fed_diffmic as fd; took = time.perf_counter() - start\n"
        "assert {'simulate', 'load_model', 'datasets'} <= set(dir(fd))\n"
        "heavy = {'torch', 'flwr', 'hydra', 'pandas', 'numpy', 'ray', 'timm', 'matplotlib', 'simulations', 'server'}\n"
        "print(took, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    took, _, loaded = done.stdout.strip().partition(" ")
    assert loaded == "[]", done.stderr
    assert float(took) < 0.2


def test_every_name_is_there_and_the_stub_says_the_same():
    stated = {
        alias.asname: (node.module, alias.name)
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*stated, "__version__"} == set(fd.__all__)
    for name, (module, inner) in stated.items():
        home = sys.modules.get(module) or __import__(module, fromlist=[inner])
        assert getattr(fd, name) is getattr(home, inner)
    assert fd.datasets.load.__module__ == "fed_diffmic.api.datasets"


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="'fed_diffmic' has no attribute 'simulat'"):
        fd.simulat  # noqa: B018
