"""The study of a run at the coordinator: made once, kept in the run's folder, signed; sites hold the run to it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.errors import ConfigError, ModelFileError
from fed_diffmic.exchange.study import Study, make_study, parse_study
from fed_diffmic.files import read_json, tensors_digest, write_json
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.provenance import code_facts
from server.stage import exchanged_kinds, start_state
from server.start import as_simulation, expected_sites, run_config, signing_key
from server.strategy import server_algorithm

STUDY = "study.json"
_ANOTHER = "Start another run, in another run.dir: what sites agreed to cannot be changed."


def study_of_run(
    folder: Path,
    spec: RunSpec,
    *,
    stages: Sequence[str],
    sites: Sequence[str] | None,
    test: bool,
    signer: PrivateKey | None = None,
) -> Study:
    """The study of the run in ``folder``: as it was written there first, or made and written now.

    Args:
        folder: the run's; made if it is not there.
        spec: of the run.
        stages: in order.
        sites: that are expected; none: whoever is there.
        test: whether metrics over test images will be asked for.
        signer: the coordinator's key; none: a simulation or an insecure trial, whose study nobody checks.

    Raises:
        ModelFileError: the file is damaged, or of another run than this one is now.
        MachineError: it cannot be written.
    """
    path = folder / STUDY
    study = stored_study(folder)
    nobodys = signer is None and study is not None and not study.signature  # no site was held to it
    if study is None or (nobodys and differences(study, spec, stages=stages, sites=sites)):
        study = new_study(spec, stages=stages, sites=sites, test=test, signer=signer)
    else:
        check_study(study, spec, stages=stages, sites=sites, test=test, path=path)
        if signer is None or study.signed_by(signer.public_key()):
            return study
        study = study.signed(signer)  # the coordinator's key is another now
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"study": study.text, "signature": study.signature})
    return study


def new_study(
    spec: RunSpec, *, stages: Sequence[str], sites: Sequence[str] | None, test: bool, signer: PrivateKey | None
) -> Study:
    """The study of a run that has none yet; see :func:`study_of_run`."""
    # Only real sites compare the first weights; a simulation need not build its network twice.
    initial = {} if signer is None else {stages[0]: first_digests(spec, stages[0])}
    study = make_study(spec, stages=stages, test=test, sites=sites, initial=initial, code=_code())
    return study if signer is None else study.signed(signer)


def study_of_config(config: ServerConfig) -> Study:
    """The study of the run that a configuration describes: as the run's folder holds it, or as the run would make it.

    Nothing is written: sites review it before the run starts.

    Raises:
        ConfigError: classes or task are left to the sites, so that nobody knows them yet.
        ModelFileError: the folder's study is damaged, or weights do not fit.
    """
    study = stored_study(Path(str(config.run.dir)))
    if study is not None:
        return study
    sites = expected_sites(config)
    found = run_config(config, sites)
    if "spec-json" not in found:
        raise ConfigError("consortium.classes", "null", "the classes, and consortium.task, before a run is reviewed")
    spec, stages = RunSpec.from_json(found["spec-json"]), list(trained_stages(as_simulation(config).stages))
    return new_study(spec, stages=stages, sites=sites, test=config.run.test_s > 0, signer=signing_key(config))


def stored_study(folder: Path) -> Study | None:
    """The study in a run's folder, or none.

    Raises:
        ModelFileError: it is damaged.
    """
    path = folder / STUDY
    if not path.exists():
        return None
    value = read_json(path)
    try:
        return parse_study(value["study"], value["signature"])
    except (ConfigError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} does not hold a study", "Restore the file from the backup.") from error


def check_study(
    study: Study, spec: RunSpec, *, stages: Sequence[str], sites: Sequence[str] | None, test: bool, path: Path
) -> None:
    """Refuse to continue a run as another study.

    Raises:
        ModelFileError: says what differs.
    """
    differ = differences(study, spec, stages=stages, sites=sites)
    if differ:
        raise ModelFileError(f"{path} is the study of another run: they differ in {', '.join(differ)}", _ANOTHER)
    if test and not study.document["test"]:
        raise ModelFileError(
            f"the study that sites agreed to ({path}) asks for no metrics over test images",
            f"Leave run.test_s at 0. {_ANOTHER}",
        )


def differences(study: Study, spec: RunSpec, *, stages: Sequence[str], sites: Sequence[str] | None) -> list[str]:
    """In what a study is not that of a run; whether test metrics are asked for is left out."""
    now = make_study(spec, stages=stages, test=False, sites=sites, initial={}, code={}).document
    return [name for name in ("run", "arm", "spec", "stages", "sites") if now[name] != study.document[name]]


def first_digests(spec: RunSpec, stage: str) -> dict[str, str]:
    """Digests of what a stage's first round sends: the frozen base, and the weights that will be trained."""
    algorithm = server_algorithm(spec.strategy, spec.stage(stage))
    kinds = exchanged_kinds(spec, stage, algorithm)
    state = start_state(spec, stage, None)
    frozen: Tensors = {name: value for name, value in state.items() if name not in kinds}
    return {"base": tensors_digest(frozen), "weights": tensors_digest({name: state[name] for name in kinds})}


@functools.cache
def _code() -> Mapping[str, Any]:
    return code_facts()
