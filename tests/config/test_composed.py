"""What is put together of the shipped files is what Hydra makes of them, for every option of every group."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fed_diffmic.config.choices import CLIENT, FOLDER, SERVER, SIMULATE, Base, composed, group_options
from fed_diffmic.config.owners import KINDS, builtins
from tests.config.hydra_twin import composed_by_hydra


def rows(base: Base) -> list[dict[str, str]]:
    """Choices that name every option of every group at least once, few at a time; the first names nothing."""
    options = {g: list(builtins(KINDS[g])) if g in KINDS else group_options(g) for g in base.groups}
    most = max(map(len, options.values()))
    every = [{g: names[turn % len(names)] for g, names in options.items()} for turn in range(most)]
    # What nobody chose follows what was chosen: the stages the model.
    return [{}, *({"model": name} for name in options.get("model", []) if name != "linear"), *every]


@pytest.mark.parametrize("base", [SIMULATE, SERVER, CLIENT], ids=lambda base: base.name)
def test_every_option_is_composed_as_by_hydra(base: Base) -> None:
    for chosen in rows(base):
        found = composed(FOLDER, base.name, tuple(sorted(chosen.items())))
        assert found == composed_by_hydra(FOLDER, base, chosen), chosen
        assert type(found) is base.config_type


def test_the_library_that_composes_is_not_loaded() -> None:
    code = (
        "import sys; from fed_diffmic.config.compose import compose; compose(None, ['model=compact'])\n"
        "print(sorted({'hydra', 'omegaconf', 'antlr4'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
