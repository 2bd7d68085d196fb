"""Failures that a user can mend: one class each, with a stable code, a cause and a remedy.

Exit codes of the commands (documented in docs/errors.md):

====  =============================================================================
code  meaning
====  =============================================================================
0     done
1     a defect of ours: a traceback is printed, please report it
2     the configuration, the command line, a key or a certificate is wrong (nothing was started)
3     the data are wrong (nothing was trained)
4     a model file or a checkpoint does not fit
5     a round failed: quorum missed, deadline passed, every reply refused
6     the machine: no space, no permission, device missing
130   interrupted by Ctrl-C; the run can be resumed
====  =============================================================================
"""

from __future__ import annotations


class FedDiffmicError(Exception):
    """Base of every failure that a user can mend.

    Args:
        cause: what is wrong and where, one or more sentences. Never a file or patient name.
        remedy: what the user can do about it.
    """

    code = "FD000"
    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.code}: {self.cause}"
        return f"{text}\n  What to do: {self.remedy}" if self.remedy else text


class ConfigError(FedDiffmicError):
    """A key, a value or a combination in the configuration that is not allowed.

    Args:
        key: full dotted key, for example ``stages.guidance.rounds``.
        value: what was given.
        allowed: what is allowed, in words.
    """

    code = "FD001"
    exit_code = 2

    def __init__(self, key: str, value: object, allowed: str, remedy: str = "") -> None:
        super().__init__(f"{key}={value!s} is not allowed; allowed: {allowed}", remedy)
        self.key = key
        self.value = value
        self.allowed = allowed


class UsageError(FedDiffmicError):
    """The command line itself cannot be understood."""

    code = "FD002"
    exit_code = 2


class DataError(FedDiffmicError):
    """Tables or images that cannot be used as they are; lists every finding at once."""

    code = "FD003"
    exit_code = 3


class PartitionError(FedDiffmicError):
    """The data cannot be divided over the sites as asked."""

    code = "FD004"
    exit_code = 3


class ModelFileError(FedDiffmicError):
    """Weights, checkpoint or run folder that is missing, torn or does not fit the model."""

    code = "FD005"
    exit_code = 4


class RoundError(FedDiffmicError):
    """A round that could not end well: quorum missed, deadline passed, all replies refused."""

    code = "FD006"
    exit_code = 5


class MachineError(FedDiffmicError):
    """No space, no permission, no such device."""

    code = "FD007"
    exit_code = 6


class SpaceLimitError(MachineError):
    """More space would be used than the site's policy lends."""

    code = "FD014"
    exit_code = 6


class CredentialError(FedDiffmicError):
    """A key, certificate, roster or kit that is missing, of the wrong kind, expired or not whom it should be."""

    code = "FD008"
    exit_code = 2


class LedgerError(FedDiffmicError):
    """The privacy ledger is missing, shorter or older than it was, or changed; a person must say why."""

    code = "FD009"
    exit_code = 4


class BudgetError(FedDiffmicError):
    """What was asked for would spend more privacy than the site's budget allows."""

    code = "FD010"
    exit_code = 5


class RoundShareError(BudgetError):
    """One round would cost more than the site lets a single round spend."""


class RunShareError(BudgetError):
    """The run would have spent more than the site lets a single run spend."""
