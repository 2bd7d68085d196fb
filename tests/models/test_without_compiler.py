"""What a start loads: neither the compiler nor what only drawing, splitting and intervals need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch._dynamo", "sympy", "sklearn", "scipy.stats", "pandas", "matplotlib", "ray", "plotly")


@pytest.mark.parametrize("module", ["client.app", "simulations.run"])
def test_a_start_loads_no_more_than_it_needs_and_the_compiler_is_itself_afterwards(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
        "import torch, timm\n"
        "print('OURS', getattr(vars(torch).get('_dynamo'), '__class__', None).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "HEAVY []" in done.stdout and "_StandIn" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["client.supervisor", "server.start"])
def test_what_only_supervises_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}\nprint('TORCH', 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "TORCH False" in done.stdout, done.stdout + done.stderr


def test_the_stand_in_gives_what_it_lacks_from_the_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from fed_diffmic.models import without_compiler as w\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "found = w._StandIn('torch._dynamo').config\n"
        "import torch._dynamo\n"
        "assert found is torch._dynamo.config and not isinstance(torch._dynamo, w._StandIn)\n"
        "assert w.is_compile_supported('cpu') is True\n"
        "print('GOOD')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "GOOD" in done.stdout, done.stderr


def test_shapes_of_a_network_are_found_without_the_compiler_and_are_the_real_ones() -> None:
    program = (
        "import sys, torch\n"
        "from fed_diffmic.config.simulation import ModelConfig\n"
        "from fed_diffmic.models import backbones, checks\n"
        "cfg = ModelConfig(image_side=64, crop=32, guidance_backbone='test_resnet')\n"
        "arguments = checks.encoder_arguments(cfg, 'guidance_backbone')\n"
        "found = checks._feature_shape('test_resnet', tuple(sorted(arguments.items())))\n"
        "print('LOADED', 'torch._dynamo' in sys.modules, '_dynamo' in vars(torch))\n"
        "real = backbones.Encoder('test_resnet', **arguments).eval()\n"
        "print('ALIKE', tuple(real(torch.zeros(2, 3, 64, 64)).shape) == found)\n"
        "print('DRAWN', all(p.std() > 0 for p in real.parameters() if p.ndim > 1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.splitlines() == ["LOADED False False", "ALIKE True", "DRAWN True"], done.stdout + done.stderr
