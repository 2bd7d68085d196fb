"""What classes are called in words: one for each, or none at all."""

from __future__ import annotations

from collections.abc import Sequence

from fed_diffmic.errors import ConfigError

LONGEST = 80


def check_class_names(group: str, words: Sequence[str], classes: Sequence[str]) -> None:
    """Words for classes, in the order of the classes.

    Args:
        group: whose ``class_names`` they are, in messages.
        words: of the configuration.
        classes: of the run.

    Raises:
        ConfigError: another number of them, two alike, or one that cannot stand in a table.
    """
    fit = all(word.isprintable() and len(word) <= LONGEST for word in words)
    if words and (len(set(words)) != len(classes) or len(words) != len(classes) or not fit):
        allowed = f"{len(classes)} different texts of at most {LONGEST} letters, one for each of {', '.join(classes)}"
        raise ConfigError(f"{group}.class_names", list(words), allowed)
