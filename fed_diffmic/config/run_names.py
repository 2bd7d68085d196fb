"""What a run may be called: its name comes from elsewhere, names folders and is printed at every site."""

from __future__ import annotations

LONGEST = 512
RUN_NAMES = f"1 to {LONGEST} printable characters, no / or \\, not . or .."


def is_run_name(name: object) -> bool:
    """Whether a text may be the name of a run.

    A control character would move the cursor of whoever reads a log, and one that turns the direction of writing would
    show another name than the one that is approved: neither is printable. A part of a path would lead elsewhere.
    """
    return (
        isinstance(name, str)
        and 0 < len(name) <= LONGEST
        and name.isprintable()
        and not set(name) & {"/", "\\"}
        and name not in (".", "..")
    )
