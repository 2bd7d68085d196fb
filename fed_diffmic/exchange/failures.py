"""Failure codes that may leave a site. Only the code and its fixed sentence cross; detail stays.

An exception's own text can hold a path or a patient's number, so it never travels: the site sends a
code, and the coordinator looks the sentence up here, whatever text came along with the code.
"""

from __future__ import annotations

from fed_diffmic.errors import (
    ConfigError,
    DataError,
    FedDiffmicError,
    MachineError,
    ModelFileError,
    PartitionError,
)

BAD_REQUEST = 2001
NO_DATA = 2002
BAD_MODEL = 2003
NO_STATE = 2004
DIVERGED = 2005
MACHINE = 2006
LABELS = 2007
SETTINGS = 2008
UNEXPECTED = 2099
NODE_FAILED = 2100

FAILURES: dict[int, str] = {
    BAD_REQUEST: "the site could not read the request",
    NO_DATA: "the site's data cannot be used",
    BAD_MODEL: "the weights sent do not fit the model that the site built",
    NO_STATE: "the site does not hold the state that the coordinator's checkpoint names",
    DIVERGED: "the local update did not end with finite numbers",
    MACHINE: "the site's machine has no space, memory, permission or device for the task",
    LABELS: "the site's classes or task are not those of the run",
    SETTINGS: "the request asks for settings that the site does not accept",
    UNEXPECTED: "the site failed unexpectedly; its own log has the detail",
    NODE_FAILED: "Flower reports that the site's process failed or is not there",
}


class SiteError(Exception):
    """A task that a site could not do; ``code`` is all that the coordinator learns.

    Args:
        code: a key of :data:`FAILURES`.
    """

    def __init__(self, code: int) -> None:
        super().__init__(FAILURES[code])
        self.code = code


def failure_code(error: BaseException) -> int:
    """The code that stands for an exception raised at a site."""
    if isinstance(error, SiteError):
        return error.code
    if isinstance(error, (DataError, PartitionError)):
        return NO_DATA
    if isinstance(error, ModelFileError):
        return BAD_MODEL
    if isinstance(error, ConfigError):
        return SETTINGS
    if isinstance(error, (MachineError, MemoryError, OSError)):
        return MACHINE
    if isinstance(error, FedDiffmicError):
        return SETTINGS
    return UNEXPECTED


def failure_sentence(code: int) -> str:
    """The fixed sentence of a code; codes that are not ours (Flower's own) mean that the node failed."""
    return FAILURES.get(code, FAILURES[NODE_FAILED])
