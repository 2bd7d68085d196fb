"""``fd.simulate`` and ``fd.load_run``: a run, from its settings or from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.api.models import Model, load_model
from fed_diffmic.api.settings import Given, configuration
from fed_diffmic.config.checks import check_same_run, check_start
from fed_diffmic.config.folders import with_run_dir
from fed_diffmic.errors import ModelFileError
from fed_diffmic.models.checks import check_model_config
from fed_diffmic.provision.keys import PublicKey
from fed_diffmic.reporting.compare import read_summary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A finished run's folder.

    Attributes:
        path: the folder.

    Examples:
        >>> import fed_diffmic as fd
        >>> run = fd.load_run("first")
        >>> sorted(run.summary["sites"])
        ['site-1', 'site-2']
        >>> list(run.metrics.columns)
        ['arm', 'lr_scale', 'stage', 'round', 'site', 'split', 'metric', 'value', 'optimizer']
        >>> run.model().classes
        ('0', '1', '2', '3', '4')
    """

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Every figure of the run: ``summary.json`` (docs/metrics.md).

        Raises:
            UsageError: the run has not ended.
            ModelFileError: the file is torn.
        """
        return read_summary(self.path)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a round and figure: ``metrics.csv``.

        Raises:
            ModelFileError: it is missing or torn.
        """
        import pandas as pd

        try:
            return pd.read_csv(self.path / "metrics.csv")
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"{self.path / 'metrics.csv'} cannot be read: {type(error).__name__}",
                "Name a run of `simulate` that has ended; continue one that has not with resume=True.",
            ) from error

    def model(
        self, key: PublicKey | str | Path | None = None, *, site: str | None = None, device: str = "cpu"
    ) -> Model:
        """The run's final model: :func:`fed_diffmic.api.models.load_model`."""
        return load_model(self.path, key, site=site, device=device)


def load_run(path: str | Path) -> Run:
    """A finished run.

    Raises:
        UsageError: there is none, or it has not ended.
        ModelFileError: its summary is torn.

    Examples:
        >>> import fed_diffmic as fd
        >>> fd.load_run("first").summary["status"]
        'done'
        >>> fd.load_run("nowhere")
        Traceback (most recent call last):
        fed_diffmic.errors.UsageError: ...nowhere...
    """
    run = Run(Path(path).expanduser().absolute())
    run.summary  # noqa: B018 - says at once that there is none
    return run


def simulate(config: Given = None, *, resume: bool = False, **settings: Any) -> Run:
    """Train across virtual sites on this machine: ``fed-diffmic simulate``.

    It prints its progress, and returns when the run has ended; without ``run.dir`` it writes to a new folder below
    ``runs/``.

    Args:
        config: settings as a mapping, by dotted key or nested; a YAML file; a ``SimulateConfig``; none: the defaults.
        resume: continue the run in ``run.dir``, with the settings that it was started with.
        settings: laid over ``config``: ``model="tiny"``, ``run={"dir": "here"}``.

    Raises:
        FedDiffmicError: its kinds say what is wrong and what to do (:mod:`fed_diffmic.errors`).

    Examples:
        Settings are checked before anything starts (docs/api.md trains a run):

        >>> import fed_diffmic as fd
        >>> fd.simulate(model="tiny", stages={"guidance": {"rounds": -1}})
        Traceback (most recent call last):
        fed_diffmic.errors.ConfigError: ...stages.guidance.rounds=-1 is not allowed...
        >>> fd.simulate({"partition.alfa": 0.3})
        Traceback (most recent call last):
        fed_diffmic.config.text.UnknownKeyError: ...Did you mean partition.alpha...
    """
    checked = configuration(config, settings)
    saved = Path(checked.run.dir or "") / "config.yaml"
    if resume and checked.run.dir and saved.is_file():
        if config is None:
            checked = configuration(saved, settings)
        check_same_run(configuration(saved, {}), checked)
    check_start(checked, resume=resume)
    check_model_config(checked.model)
    checked = with_run_dir(checked)
    from simulations.run import simulate as run_simulation

    run_simulation(checked, resume=resume)
    return load_run(str(checked.run.dir))
