"""A site's policy in sentences that an ethics board can read: complete, and true of what is enforced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

from fed_diffmic.config.hours import parse_hours
from fed_diffmic.config.policy_study import StudyRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.exchange.budget_text import privacy_sentences
from fed_diffmic.exchange.floors_text import sentences as floors_sentences
from fed_diffmic.exchange.limits import limit_sentences

_STAGES = {
    "guidance": "guidance (the network that finds salient regions)",
    "diffusion": "diffusion (the classifier itself)",
    "plain": "plain (a baseline classifier)",
}
_TYPES = {
    "float32": "32-bit floating-point numbers",
    "float16": "16-bit floating-point numbers",
    "float64": "64-bit floating-point numbers",
    "int64": "64-bit whole numbers (counters)",
}
_METRICS = {
    "num_examples": "how many images a figure or an update is about",
    "images": "how many images are in training, validation and test",
    "class_counts": "how many training images each class has",
    "loss": "mean loss",
    "loss_images": "how many images the training loss is about",
    "steps": "number of training steps",
    "seconds": "seconds that training took",
    "auroc_macro": "area under the ROC curve, averaged over classes",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "test/*": "once, when training is over, for each stage's model: metrics over the test images (balanced accuracy, "
    "area under the ROC curve, calibration error, sensitivity at 90 % specificity, with intervals) and how many images "
    "of each class are among them",
    "subgroup/*": "once, when training is over: metrics for each subgroup of the test images (dataset.subgroups: names "
    "of columns and values leave too)",
    "points/*": "once, when training is over: how many test images with and without each class have a probability in "
    "each of 82 cells (operating points over all sites); no count of fewer images than policy.min_count, each in the "
    "cell of its outermost image",
    "sets/*": "once, when training is over: how many validation images have scores in each of 201 cells, by class (for "
    "prediction sets); no count of fewer images than policy.min_count",
    "unsure/*": "once, when training is over: the same of how uncertain right and wrong predictions on validation "
    "images are (to find which uncertainty tells errors)",
    "nll/*": "sums of negative log-likelihoods over the validation images (for the calibration)",
}


def explain(policy: PolicyConfig, site: str = "", privacy: PrivacyConfig | None = None) -> str:
    """The whole policy as text: headings and sentences, for a terminal or a document.

    Args:
        policy: group ``policy`` of the site's configuration.
        site: name of the site, for the title.
        privacy: group ``privacy`` of its configuration; none: not known.

    Raises:
        ConfigError: ``policy.hours`` cannot be read.
    """
    parts = [
        ("What holds for everything", _principles(policy)),
        ("Which runs may use the data", _uses(policy)),
        ("What may leave the site", _leaves(policy)),
        ("On how many images and patients it must rest", floors_sentences(policy.floors)),
        ("What the coordinator may see of it", _masked(policy)),
        ("How much work may be asked for", _work(policy)),
        ("How much of the machine may be used", limit_sentences(policy.limits)),
        ("Privacy", privacy_sentences(policy, privacy)),
        ("Who agrees to the study of a run", _study(policy.study)),
        ("The finished model", _model(policy)),
    ]
    return headed(f"Policy of the site {site}" if site else "Policy of the site", parts)


def headed(title: str, parts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A title, and below it headings with sentences."""
    blocks = [f"{title}\n{'=' * len(title)}"]
    for heading, sentences in parts:
        blocks.append("\n".join([heading, "-" * len(heading), *(f"- {sentence}" for sentence in sentences)]))
    return "\n\n".join(blocks) + "\n"


def _principles(policy: PolicyConfig) -> list[str]:
    return [
        "These rules are the site's own. The coordinator cannot see or change them. What they do not name is denied.",
        "No image leaves the site in any case, and no name of an image, a patient or a file.",
        "Every task, every refusal and everything that leaves has a signed line in the site's own audit log.",
        f"The rules started from the preset `{policy.name}`; what follows is what holds, whatever the preset says.",
    ]


def _uses(policy: PolicyConfig) -> list[str]:
    stages = [_STAGES.get(stage, stage) for stage in policy.stages]
    return [
        _named("Runs that may use the data", policy.runs, "No run may use the data."),
        _named("Datasets (by their layout) that may be used", policy.datasets, "No dataset may be used."),
        _named("Classes that a run may ask for", policy.classes, "No class may be asked for, so no run can start."),
        _named("Stages of training that may run", stages, "No stage of training may run."),
        _named("Federated algorithms that may be used", policy.strategies, "No federated algorithm may be used."),
        _named(
            "Codecs in which weights may come and updates leave (these rules see what they are decoded to)",
            policy.codecs,
            "No codec may be used, so no run can start.",
        ),
        _plugins(policy.plugins),
    ]


def names_nothing(policy: PolicyConfig) -> str:
    """What keeps every run out of a site, with what to change; empty where some run could be let in."""
    empty = [
        f"policy.{name}"
        for name in (
            "runs",
            "datasets",
            "classes",
            "stages",
            "strategies",
            "codecs",
            "tensors",
            "dtypes",
            "metrics",
            "hours",
        )
        if not getattr(policy, name)
    ]
    empty += [
        f"policy.{name}"
        for name in ("max_update_norm", "max_rounds", "max_epochs", "max_steps", "max_seconds")
        if not getattr(policy, name) > 0
    ]
    if not empty:
        return ""
    names = ", ".join(empty[:4]) + (f" and {len(empty) - 4} more" if len(empty) > 4 else "")
    return (
        f"policy: {policy.name}, nothing is named in {names}: every request will be refused. Name what is allowed in "
        "site.yaml (start from policy: standard); `fed-diffmic policy explain --config FILE` says what that means"
    )


def _leaves(policy: PolicyConfig) -> list[str]:
    metrics = [f"{name} ({_METRICS[name]})" if name in _METRICS else name for name in policy.metrics]
    types = [f"{name} ({_TYPES[name]})" if name in _TYPES else name for name in policy.dtypes]
    size = "No update may leave: the largest size allowed is 0."
    if policy.max_update_norm > 0:
        size = (
            "An update (how the model's weights changed by training here) leaves only if its size, the L2 norm over "
            f"all its floating-point numbers, is at most {_number(policy.max_update_norm)}."
        )
    least = f"Metrics leave even over a single image: the smallest count is {policy.min_count}."
    if policy.min_count > 1:
        least = (
            f"Metrics over fewer than {policy.min_count} images do not leave. Counts from 1 to {policy.min_count - 1} "
            "leave as the word that they are kept back, not as 0, and so do further counts where a hidden one could be "
            "computed from the others. A site with "
            f"fewer than {policy.min_count} training images sends no update."
        )
    return [
        _named("Parts of the model (tensors, by name) whose update may leave", policy.tensors, "No part may leave."),
        _named("Types of numbers in which they may leave", types, "No type of number may leave."),
        size,
        _named("Metrics that may leave", metrics, "No metric may leave."),
        least,
        "A round of training is answered once: the same request again gets the same answer, another one is refused.",
    ]


_COUNTS = (
    "Counts of test images in such a sum are exact: one of few images here is hidden by the other sites' counts alone."
)


def _masked(policy: PolicyConfig) -> list[str]:
    """Secure aggregation."""
    company = (
        f"A masked sum is over at least {policy.min_sites} other sites, each of which people here accepted by the "
        "digits of its key (`fed-diffmic provision peers`); over fewer, or with any other site in it, this site gives "
        "nothing."
    )
    if policy.secure_aggregation == "off":
        return ["An update leaves as it is, sealed for the coordinator, which sees it by itself. No run may mask it."]
    if policy.secure_aggregation == "allowed":
        return [
            "Whether the coordinator sees this site's update by itself or only as part of a sum is the run's choice, "
            "which its study says (strategy.secure_aggregation). So it is of metrics of validation and test images: "
            "in a masked run those that are named above, and counts for prediction sets, leave in sums over the same "
            "sites, each round and at the end"
            + (", whatever policy.summed_metrics says." if policy.summed_metrics else ".")
            + f" {_COUNTS}",
            company,
        ]
    beside = "Beside the sum no figure leaves, whatever is named above, and no count but the number of training images."
    if policy.summed_metrics:
        beside = (
            "Metrics of validation images that are named above, and the sums of the calibration, leave in masked sums "
            "over the same sites in every round of a run, and counts for prediction sets and of test images once at "
            "its end (policy.summed_metrics); no figure leaves by itself, and no count but the number of training "
            "images. " + _COUNTS
        )
    return [
        "The coordinator never sees an update of this site: it leaves under masks and is known to it only as part of a "
        "sum. Every run that asks for an update as it is is refused.",
        company,
        beside,
    ]


def _work(policy: PolicyConfig) -> list[str]:
    when = "Training and evaluation may be done at no time."
    if policy.hours:
        spans = "; ".join(span.sentence() for span in parse_hours(policy.hours))
        when = f"Training and evaluation may be done, by the site's local time: {spans}. Work under way ends then."
    time = "No time is allowed for a round."
    if policy.max_seconds > 0:
        span = timedelta(seconds=policy.max_seconds)
        time = f"A task may take at most {_number(policy.max_seconds)} seconds ({span}); then it is stopped."
    return [
        _most(policy.max_rounds, "rounds in a stage", "No round is allowed."),
        _most(policy.max_epochs, "passes over the training images (epochs) in a round", "No pass is allowed."),
        _most(policy.max_steps, "training steps in a round", "No training step is allowed."),
        time,
        when,
    ]


def _study(rules: StudyRules) -> list[str]:
    if rules.approval == "person":
        found = ["The site does nothing in a run until a person approved its study: `fed-diffmic policy approve`."]
    else:
        found = ["A study that keeps to what follows is agreed to by itself; another one needs a person's approval."]
    models = ", ".join(rules.models) or "none"
    found.append(f"Models that the rule allows, exactly as this program ships them or by their digest: {models}.")
    encoders = ", ".join(json.dumps(name) if "," in name else name for name in rules.backbones) or "none"
    found.append(f"Encoders (* stands for any text) of which the rule allows any other model: {encoders}.")
    for key, allowed in sorted(rules.flat_ranges.items()):
        found.append(f"The rule allows for {key}: {json.dumps(allowed)} (lowest and highest number, or the words).")
    found.append("For every other value the rule allows what the program itself allows.")
    found.append(
        "Whatever the approval says: what was agreed to is kept, and a request that asks for anything else is refused."
    )
    return found


def _model(policy: PolicyConfig) -> list[str]:
    if policy.take_model == "never":
        return [
            "No finished model is taken from the coordinator: whoever wants it here copies it. If one were taken, it "
            f"could have {_number(policy.model_mib)} MiB."
        ]
    return [
        f"A finished run's model of up to {_number(policy.model_mib)} MiB is kept here when the coordinator sends it, "
        "if this site took part in the run, the pinned key signed it, and it is what this site was sent last. It is "
        "used when a person says so (`fed-diffmic client model use`). That this site keeps it, the coordinator learns.",
    ]


def _named(what: str, names: Sequence[str], none: str) -> str:
    if not names:
        return none
    starred = " (* stands for any text)" if any("*" in name for name in names) else ""
    return (
        f"{what}: any." if list(names) == ["*"] else f"{what}{starred}: {', '.join(_quoted(name) for name in names)}."
    )


def _most(number: float, what: str, none: str) -> str:
    return f"At most {_number(number)} {what}." if number > 0 else none


def _number(number: float) -> str:
    """With all its digits."""
    return f"{int(number):,}" if float(number).is_integer() else repr(float(number))


def _plugins(names: Sequence[str]) -> str:
    """Names in full: here * is a letter like any other."""
    if not names:
        return "No code of a package from outside this program may be run here, whatever is installed."
    listed = ", ".join(_quoted(name) for name in names)
    return f"Packages from outside this program, or single names that they offer, whose code may be run here: {listed}."


def _quoted(name: str) -> str:
    """In quotes where the list could be read in two ways."""
    return f'"{name}"' if not name.strip() or "," in name or '"' in name else name
