"""What people can do after a failure code: those at the site, who see their own files, and those at the coordinator.

Looked up by the code on either side; nothing of it crosses.
"""

from __future__ import annotations

from collections.abc import Mapping

from fed_diffmic.exchange import failures as f

_LOOK = "`fed-diffmic client status --config FILE` and site.log in the site's folder say more."
_POLICY = "If the site agrees, its people change {key} in their configuration and start the client again."
_PHONE = "Ask the site's people: `fed-diffmic client status --config FILE` says there what it means and what helps."

_KEYS = {
    f.POLICY_RUN: "policy.runs",
    f.POLICY_DATASET: "policy.datasets",
    f.POLICY_CLASSES: "policy.classes",
    f.POLICY_STAGE: "policy.stages",
    f.POLICY_STRATEGY: "policy.strategies",
    f.POLICY_PLUGIN: "policy.plugins",
    f.POLICY_CODEC: "policy.codecs",
    f.POLICY_MASKING: "policy.secure_aggregation",
    f.MODEL_SIZE: "policy.model_mib",
    f.POLICY_TENSORS: "policy.tensors",
    f.POLICY_DTYPES: "policy.dtypes",
    f.POLICY_NORM: "policy.max_update_norm",
    f.POLICY_METRICS: "policy.metrics",
    f.POLICY_COUNT: "policy.min_count",
    f.POLICY_ROUNDS: "policy.max_rounds",
    f.POLICY_EPOCHS: "policy.max_epochs",
    f.POLICY_STEPS: "policy.max_steps",
    f.POLICY_SECONDS: "policy.max_seconds",
    f.POLICY_HOURS: "policy.hours",
    f.POLICY_PRIVACY: "policy.privacy, or privacy.name=dp_sgd",
    f.LIMIT_SIZE: "policy.limits",
    f.LIMIT_CACHE: "policy.limits.cache_mib",
    f.LIMIT_MEMORY: "policy.limits.memory_mib",
}
_NORM = "The coordinator starts a run with model.norm=group and model.encoder_norm=frozen (or group)."

AT_SITE: Mapping[int, str] = {
    **{
        code: f"If that is meant to be allowed, change {key} in site.yaml and start the client again."
        for code, key in _KEYS.items()
    },
    f.NO_DATA: "`fed-diffmic preflight --config FILE` reads the data and says what is wrong with them.",
    f.MACHINE: "Free space or memory; site.log in the site's folder says which file or device it was.",
    f.LABELS: "Compare dataset.classes and dataset.task in site.yaml with the run's: they must be the same, in order.",
    f.PRIVATE_NETWORK: _NORM,
    f.PRIVATE_SETTINGS: "site.log in the site's folder names the key of the group privacy that does not fit.",
    f.PAUSED: "`fed-diffmic client continue --config FILE` goes on.",
    f.WITHDRAWN: "`fed-diffmic client continue --config FILE --rejoin` takes part again.",
    f.BUDGET: "`fed-diffmic ledger project` and `fed-diffmic ledger grant`; docs/privacy.md.",
    f.LEDGER: "Find out why, then `fed-diffmic ledger accept`; docs/privacy.md.",
    f.PEERS: "`fed-diffmic provision peers --config FILE` says whom this site accepts; site.log names the other.",
    f.UNTRUSTED: "site.log in the site's folder says how many others privacy.honest_sites may be set to here.",
    f.FEW_PEERS: "`fed-diffmic provision peers --config FILE`; policy.min_sites is how many others are needed.",
    f.MODEL_AGAIN: "`fed-diffmic client model list --config FILE` names what is kept; remove the folder of one under "
    "`models/` that is not needed.",
    f.STUDY_WAITS: "Read it: `fed-diffmic policy explain --config FILE --run RUN`. Agree: `fed-diffmic policy approve "
    "--config FILE --run RUN`.",
}
AT_COORDINATOR: Mapping[int, str] = {
    **{code: _POLICY.format(key=key) for code, key in _KEYS.items()},
    f.PAUSED: "Nothing: it is asked again. Its people go on with `fed-diffmic client continue`.",
    f.WITHDRAWN: "Nothing: it is asked for nothing more. Its people may rejoin with `client continue --rejoin`.",
    f.POLICY_HOURS: "Nothing: it is asked again within the round's time; run.deadline_s is how long that is.",
    f.STUDY_WAITS: "Tell its people that the study is there: `fed-diffmic policy approve --config FILE --run RUN`.",
    f.PEERS: "Send new kits; each site accepts each other one by its digits: `fed-diffmic provision peers`.",
    f.FEW_PEERS: "More sites must take part, or its people agree on a smaller policy.min_sites.",
    f.LABELS: "Compare consortium.classes and consortium.task with the site's; they must be the same, in order.",
    f.PRIVATE_NETWORK: _NORM,
    f.NODE_FAILED: "If the site is running, its client comes back by itself; else its people start it again.",
}
OF_REFUSALS: Mapping[str, str] = {
    "roster": "If that was not meant: `fed-diffmic provision enrol`, or `provision renew site` for a new key.",
    "name": "The site's people set site.name to the name in the roster, or send the key that belongs to the name.",
    "claim": "Ask the site's people how many images they have; the roster's entry holds the most (max_images).",
    "suppressed": "Its people may lower policy.min_count; with too few images a site cannot take part.",
    "norm": "Ask the site's people; run.max_update_norm is the largest update that is taken.",
    "duplicate": "Two clients say that they are this site: its people stop one.",
}


def at_site(code: int) -> str:
    """What the site's people can do."""
    return AT_SITE.get(code, _LOOK)


def at_coordinator(code: object) -> str:
    """What the coordinator's people can do; ``code`` is a failure's number or a refusal's word."""
    if isinstance(code, str):
        return OF_REFUSALS.get(code, "")
    return AT_COORDINATOR.get(code, _PHONE) if isinstance(code, int) else ""
