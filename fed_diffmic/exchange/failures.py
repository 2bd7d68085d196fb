"""Failure codes that may leave a site. Only the code and its fixed sentence cross; detail stays.

An exception's own text can hold a path or a patient's number, so it never travels: the site sends a
code, and the coordinator looks the sentence up here, whatever text came along with the code.
"""

from __future__ import annotations

from fed_diffmic.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FedDiffmicError,
    LedgerError,
    MachineError,
    ModelFileError,
    PartitionError,
    RoundShareError,
    RunShareError,
    SpaceLimitError,
)

BAD_REQUEST = 2001
NO_DATA = 2002
BAD_MODEL = 2003
NO_STATE = 2004
DIVERGED = 2005
MACHINE = 2006
LABELS = 2007
SETTINGS = 2008
REPLAY = 2009
PAUSED = 2010
WITHDRAWN = 2011
ABSENT = 2012
REPLY_SIZE = 2013
PRIVATE_NETWORK = 2014
PRIVATE_SETTINGS = 2015
MODEL_SETTINGS = 2016
TURN = 2017
POLICY_RUN = 2020
POLICY_DATASET = 2021
POLICY_CLASSES = 2022
POLICY_STAGE = 2023
POLICY_STRATEGY = 2024
POLICY_TENSORS = 2025
POLICY_DTYPES = 2026
POLICY_NORM = 2027
POLICY_METRICS = 2028
POLICY_COUNT = 2029
POLICY_ROUNDS = 2030
POLICY_EPOCHS = 2031
POLICY_STEPS = 2032
POLICY_SECONDS = 2033
POLICY_HOURS = 2034
POLICY_PRIVACY = 2035
POLICY_PLUGIN = 2036
POLICY_CODEC = 2037
POLICY_MASKING = 2038
BUDGET = 2040
LEDGER = 2041
UNPROTECTED = 2042
BUDGET_ROUND = 2043
BUDGET_RUN = 2044
UNSHARED = 2045
UNTRUSTED = 2046
STUDY_MISSING = 2050
STUDY_CHANGED = 2051
STUDY_RULES = 2052
STUDY_WAITS = 2053
UNSEALED = 2054
FORGED = 2055
FOREIGN = 2056
STALE = 2057
MASKING = 2058
PEERS = 2059
LIMIT_SIZE = 2067
LIMIT_CACHE = 2068
LIMIT_MEMORY = 2069
MODEL_SIZE = 2070
MODEL_SIGNATURE = 2071
MODEL_RUN = 2072
MODEL_TORN = 2073
MODEL_OTHER = 2074
MODEL_UNASKED = 2075
MODEL_AGAIN = 2076
FLOOR_STEP = 2060
FLOOR_UPDATE = 2061
FLOOR_REUSE = 2062
FLOOR_SHARE = 2063
FLOOR_CHANGED = 2064
FLOOR_ISOLATED = 2065
FEW_PEERS = 2066
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
    REPLAY: "the site answered another request for this round, a later one or the stage's result before",
    PAUSED: "the site is paused",
    WITHDRAWN: "the site withdrew from the run",
    ABSENT: "the site takes no part in this round",
    REPLY_SIZE: "the site's reply is larger than the coordinator takes (listen.reply_mib, listen.site_mib)",
    PRIVATE_NETWORK: "the site trains with differential privacy, which the run's network does not allow (model.norm, "
    "model.encoder_norm)",
    PRIVATE_SETTINGS: "a setting of the site's own privacy cannot be kept in this run (its group privacy)",
    MODEL_SETTINGS: "the run's own settings cannot be met at the site (its model, stages or strategy)",
    TURN: "another site of the same machine did not give up its turn in time",
    POLICY_RUN: "the site's policy does not name the run",
    POLICY_DATASET: "the site's policy does not name its dataset for use",
    POLICY_CLASSES: "the site's policy does not name all classes of the run",
    POLICY_STAGE: "the site's policy does not name the stage",
    POLICY_STRATEGY: "the site's policy does not name the federated algorithm",
    POLICY_TENSORS: "the site's policy does not let all of these tensors leave",
    POLICY_DTYPES: "the site's policy does not let tensors leave in this type",
    POLICY_NORM: "the update was larger than the site's policy lets leave",
    POLICY_METRICS: "the site's policy does not let these metrics leave",
    POLICY_COUNT: "the site has fewer images than its policy needs to take part",
    POLICY_ROUNDS: "the site's policy does not allow so many rounds",
    POLICY_EPOCHS: "the site's policy does not allow so many epochs in a round",
    POLICY_STEPS: "the site's policy does not allow so many steps in a round",
    POLICY_SECONDS: "the round took longer than the site's policy allows",
    POLICY_HOURS: "the site's policy does not allow work at this hour",
    POLICY_PRIVACY: "the site's policy requires differential privacy",
    POLICY_PLUGIN: "the site's policy does not name the package that the federated algorithm comes from",
    POLICY_CODEC: "the site's policy does not name the codec in which weights and updates cross",
    POLICY_MASKING: "the site's policy on secure aggregation does not allow what the run asks for",
    MODEL_SIZE: "the model is larger than the site's policy takes (policy.model_mib), or than it was said to be",
    MODEL_SIGNATURE: "the model is not signed by the coordinator whose key the site was given",
    MODEL_RUN: "the model is of another run than the request",
    MODEL_TORN: "what came of the model is not what its signed statement names",
    MODEL_OTHER: "the model is not the one that the rounds made, or not the one that the site was sent last",
    MODEL_UNASKED: "the site gave nothing to the run that the model is of",
    MODEL_AGAIN: "the site keeps another model of that run, or as many as it keeps",
    BUDGET: "the site's privacy budget does not allow this round; it trains no more on these data",
    LEDGER: "the site's privacy ledger is missing, shorter or older than it was, or changed; a person there must look",
    BUDGET_ROUND: "one round would cost more of the site's privacy budget than the site lets a single round take",
    BUDGET_RUN: "the run would have cost more of the site's privacy budget than the site lets a single run take",
    UNPROTECTED: "the site trains with differential privacy, and not this stage",
    UNSHARED: "the site shares its noise with others (privacy.mechanism=distributed), which needs strategy=fedsgd "
    "under masks, or the run's sums are made of such shares (strategy=fedsgd) and the site's noise is its own",
    UNTRUSTED: "the masked sum does not hold what the site's privacy counts on: so many honest others, and masks that "
    "withstand the rest",
    STUDY_MISSING: "the site holds no study of this run under the coordinator's signature",
    STUDY_CHANGED: "the request is not of the study with which this run began at the site",
    STUDY_RULES: "the site's rules do not agree to the study's model or to a number in it",
    STUDY_WAITS: "the study of the run waits for a person at the site who approves it",
    UNSEALED: "the request has no seal of the coordinator's",
    FORGED: "the request's seal is not by the coordinator whose key the site was given, or is another request's",
    FOREIGN: "the request is sealed for a site of another name",
    STALE: "the request is an old one sent again, or the coordinator's log is older than the site saw it in this run",
    MASKING: "the site does not go on with the masked sum",
    PEERS: "a site of the masked sum is none whose key this site's people accepted",
    FEW_PEERS: "the masked sum is over fewer other sites than the site's policy asks for, or than unmasking takes",
    LIMIT_SIZE: "the run asks for larger images, a larger model, more threads or more sampling than the policy allows",
    LIMIT_CACHE: "the images at the run's size would take more space than the site's policy allows",
    LIMIT_MEMORY: "the task would need, or needed, more memory than the site's policy allows",
    FLOOR_STEP: "a step of the update would use fewer images or patients than the site's policy asks for",
    FLOOR_UPDATE: "the update would rest on fewer images, patients or steps than the site's policy asks for",
    FLOOR_REUSE: "the site's policy does not allow so many updates that rest on the same few images",
    FLOOR_SHARE: "together with earlier ones the update would tell more of one image than the site's policy allows",
    FLOOR_CHANGED: "too few of the site's images changed for its policy to let metrics or updates of them leave",
    FLOOR_ISOLATED: "the weights that were sent let single images of the site stand out in the update",
    UNEXPECTED: "the site failed unexpectedly; its own log has the detail",
    NODE_FAILED: "Flower reports that the site's process failed or is not there",
}

LATER = frozenset({PAUSED, POLICY_HOURS, STUDY_WAITS, TURN})
"""Failures that pass by themselves: the coordinator asks again while the round's time lasts."""

LOST = frozenset({3, 4, 5, 8})
"""Flower's codes of a message, a node or a worker that it lost: the site may come back with its update kept."""


class SiteError(Exception):
    """A task that a site could not do; ``code`` is all that the coordinator learns.

    Args:
        code: a key of :data:`FAILURES`.
        detail: for the site's own log; never crosses.
    """

    def __init__(self, code: int, detail: str = "") -> None:
        super().__init__(f"{FAILURES[code]} ({detail})" if detail else FAILURES[code])
        self.code = code
        self.detail = detail


def failure_code(error: BaseException) -> int:
    """The code that stands for an exception raised at a site."""
    if isinstance(error, SiteError):
        return error.code
    if isinstance(error, (DataError, PartitionError)):
        return NO_DATA
    if isinstance(error, RoundShareError):
        return BUDGET_ROUND
    if isinstance(error, RunShareError):
        return BUDGET_RUN
    if isinstance(error, BudgetError):
        return BUDGET
    if isinstance(error, LedgerError):
        return LEDGER
    if isinstance(error, ModelFileError):
        return BAD_MODEL
    if isinstance(error, ConfigError):
        return _settings_code(error.key)
    if isinstance(error, SpaceLimitError):
        return LIMIT_CACHE
    if isinstance(error, (MachineError, MemoryError, OSError)):
        return MACHINE
    if isinstance(error, FedDiffmicError):
        return SETTINGS
    return UNEXPECTED


def _settings_code(key: str) -> int:
    """Which code stands for a key that is not allowed: whose it is, the coordinator's or the site's."""
    group = key.partition(".")[0]
    if key == "privacy.name":  # the site's rule is allowed; the network is not one that it can be kept for
        return PRIVATE_NETWORK
    if group in ("model", "stages", "strategy"):
        return MODEL_SETTINGS
    return PRIVATE_SETTINGS if group == "privacy" else SETTINGS


def failure_sentence(code: int) -> str:
    """The fixed sentence of a code; codes that are not ours (Flower's own) mean that the node failed."""
    return FAILURES.get(code, FAILURES[NODE_FAILED])
