"""What a check says: passed, warning or failed, why, and what to do. No name of a file of images or of a patient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from fed_diffmic.errors import FedDiffmicError

PASSED, WARNING, FAILED = "passed", "warning", "failed"
LEVELS = (PASSED, WARNING, FAILED)


@dataclass(frozen=True)
class Check:
    """The answer to one question.

    Attributes:
        name: stable, for scripts: ``network.tls``.
        level: ``passed``, ``warning`` (the site can take part, with what the cause says) or ``failed`` (it cannot).
        cause: what was found, also where it is well.
        remedy: what to do; empty where nothing is.
        facts: numbers and short texts for programs (``--json``).
        exit_code: of the failure's class (docs/errors.md); 0 unless failed.
    """

    name: str
    level: str
    cause: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS or (self.level == FAILED) != (self.exit_code != 0):
            raise ValueError(f"check {self.name}: level {self.level!r} with exit code {self.exit_code}")


def passed(name: str, cause: str, **facts: Any) -> Check:
    """It is well."""
    return Check(name, PASSED, cause, facts=facts)


def warning(name: str, cause: str, remedy: str = "", **facts: Any) -> Check:
    """The site can take part, but somebody should know."""
    return Check(name, WARNING, cause, remedy, facts)


def failed(name: str, cause: str, remedy: str = "", *, exit_code: int = 6, **facts: Any) -> Check:
    """The site cannot take part."""
    return Check(name, FAILED, cause, remedy, facts, exit_code)


def of_error(name: str, error: FedDiffmicError) -> Check:
    """A failure that has its own words."""
    return Check(name, FAILED, error.cause, error.remedy, {"code": error.code}, error.exit_code)


def guarded(name: str, run: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks that ``run`` makes; what it raises becomes one more, so that those after it are made all the same.

    The text of an unforeseen exception may hold the name of a file; only its type is said.
    """
    try:
        yield from run()
    except FedDiffmicError as error:
        yield of_error(name, error)
    except OSError as error:
        yield failed(name, f"the machine refused: {error.strerror or type(error).__name__}", "Look at its settings.")
    except Exception as error:
        yield failed(
            name,
            f"the check itself failed ({type(error).__name__})",
            "This is a defect of fed_diffmic: please report it.",
            exit_code=1,
        )


def worst(checks: Iterable[Check]) -> str:
    """The worst level; ``passed`` where there is none."""
    return max((check.level for check in checks), key=LEVELS.index, default=PASSED)


def exit_code(checks: Iterable[Check]) -> int:
    """0 unless something failed; then the code of the failure that stands first in docs/errors.md.

    What has to be mended first decides: a defect (1), configuration (2), data (3), a model (4), the machine (6).
    """
    return min((check.exit_code for check in checks if check.exit_code), default=0)


def as_json(checks: list[Check], site: str) -> dict[str, Any]:
    """For programs."""
    return {
        "site": site,
        "result": worst(checks),
        "exit_code": exit_code(checks),
        "checks": [asdict(check) for check in checks],
    }
