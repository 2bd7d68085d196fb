"""The trial: a process of its own opens the data as the worker does, trains a few real steps and says what they took.

``python -m client.preflight.trial OUT`` with the settings on standard input. A process of its own, so that a machine
whose memory does not suffice ends the trial and not the preflight, and so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.preflight.check import Check, failed, passed, warning
from client.preflight.estimate import StageEstimate, estimate_stage
from fed_diffmic.config.simulation import ModelConfig, StagesConfig, StrategyConfig
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import STAGES, RunSpec, parse_dataclass
from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.files import read_json, write_json
from fed_diffmic.transport.processes import child_env, die_with_parent, start_child

LOG = "preflight.log"
TIMEOUT_S = 1800.0
_OUT = "trial.json"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Trial:
    """What the child is asked.

    Attributes:
        config: of the site, as plain values.
        model, stages: the groups that the run is expected to have, as plain values.
        budget_s: about how long to measure the steps of a stage.
    """

    config: dict[str, Any]
    model: dict[str, Any]
    stages: dict[str, Any]
    budget_s: float = 4.0


def check_trial(
    config: SiteConfig, model: ModelConfig, stages: StagesConfig, timeout_s: float = TIMEOUT_S
) -> Iterator[Check]:
    """Start the trial, wait for it, say what it found.

    Args:
        config: of the site; its folder exists.
        model, stages: of the run that is expected.
        timeout_s: after which the trial is killed.
    """
    folder = Path(str(config.site.folder))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".preflight-") as scratch:
        out = Path(scratch) / _OUT
        trial = Trial(asdict(config), asdict(model), asdict(stages))
        child = start_child(
            "client.preflight.trial",
            [str(out)],
            env={**child_env(Path(scratch) / "flwr"), **_OFFLINE},
            log=folder / LOG,
            stdin=json.dumps(asdict(trial)).encode(),
        )
        try:
            code = child.wait(timeout_s)
        finally:
            child.kill()
        said = read_json(out) if out.is_file() else None
    if said is not None and "error" in said:
        yield Check("trial.step", "failed", said["error"], said["remedy"], {}, said["exit_code"])
    elif said is not None:
        estimates = [parse_dataclass(StageEstimate, item, "trial") for item in said["stages"]]
        yield from _report(estimates, said["device"], model, config.policy.max_seconds)
    elif code is None:
        yield failed(
            "trial.step",
            f"a training step was not done within {timeout_s:.0f} s",
            "Use a GPU, or ask for a smaller model.",
        )
    elif code in (-9, 137):
        yield failed("trial.step", "the system ended the trial: its memory does not suffice", "Use a larger machine.")
    else:
        yield failed(
            "trial.step", f"the trial ended with code {code}", f"The site's own {LOG} has the detail.", exit_code=1
        )


def _report(estimates: list[StageEstimate], device: str, model: ModelConfig, most_s: float) -> Iterator[Check]:
    yield passed(
        "trial.weights",
        f"the networks of model={model.name} are built without any download; weights come from the coordinator",
    )
    peak = max(item.peak_bytes for item in estimates)
    yield passed(
        "trial.step",
        f"forward and backward steps on this site's images work on {device}; peak memory {peak / 1e9:.2f} GB",
        peak_bytes=peak,
        device=device,
    )
    for item in estimates:
        words = (
            f"a round of stage {item.stage} takes about {_time(item.round_s)} here ({item.steps} steps "
            f"{_time(item.train_s)}, validation {_time(item.evaluate_s)})"
        )
        if item.first_s >= 0.1 * item.round_s:
            words += f", the first one {_time(item.first_s)} longer"
        words += (
            f"; {item.update_bytes / 1e6:,.1f} MB cross in each direction, once {item.base_bytes / 1e6:,.1f} MB before"
        )
        facts = {**asdict(item), "round_s": item.round_s}
        if most_s and item.round_s > most_s:
            yield warning(
                f"trial.{item.stage}",
                f"{words}; the site's policy allows {_time(most_s)}",
                "Raise policy.max_seconds, or ask for fewer steps in a round.",
                **facts,
            )
        else:
            yield passed(f"trial.{item.stage}", words, **facts)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def measure(trial: Trial) -> dict[str, Any]:
    """What the child does: every stage of the run that is expected."""
    from client.device import chosen_devices
    from client.source import SiteSource

    config: SiteConfig = parse_dataclass(SiteConfig, trial.config, "config")
    model: ModelConfig = parse_dataclass(ModelConfig, trial.model, "model")
    stages: StagesConfig = parse_dataclass(StagesConfig, trial.stages, "stages")
    device = chosen_devices(config.site.device)[0]
    data = SiteSource(config).read(model.image_side)
    spec = expected_spec(config, data.classes, data.task, model, stages)
    names = [name for name in STAGES[:2] if spec.stage(name).rounds]
    return {
        "device": device,
        "stages": [asdict(estimate_stage(spec, name, data, device, trial.budget_s)) for name in names],
    }


def expected_spec(
    config: SiteConfig,
    classes: tuple[str, ...],
    task: str,
    model: ModelConfig,
    stages: StagesConfig,
    strategy: StrategyConfig | None = None,
) -> RunSpec:
    """A run as it is expected, over this site's data; none: the strategy is the default one."""
    dataset = config.dataset
    return RunSpec(
        run_id="preflight",
        arm="federated",
        seed=0,
        task=task,
        classes=classes,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        modality=dataset.modality,
        model=model,
        stages=stages,
        strategy=strategy or StrategyConfig(),
    )


def main() -> None:
    """The child; the detail of a failure goes to the site's own log, of which the caller says nothing."""
    die_with_parent()
    os.umask(0o077)
    out = Path(sys.argv[1])
    trial = Trial(**json.loads(sys.stdin.buffer.read()))
    try:
        said = measure(trial)
    except FedDiffmicError as error:
        said = _failure(error.cause, error.remedy, error.exit_code)
    except Exception as error:
        traceback.print_exc()
        if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        said = _failure("memory does not suffice", "Use a larger machine, or ask for a smaller model or batch.", 6)
    write_json(out, said, 0o600)


def _failure(cause: str, remedy: str, exit_code: int) -> dict[str, Any]:
    return {"error": cause, "remedy": remedy, "exit_code": exit_code}


if __name__ == "__main__":
    main()
