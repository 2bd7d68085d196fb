"""Known weaknesses in what a deployment installs, by pip-audit. `make audit` calls it.

It asks the package index's advisory service, so it tells nothing where that cannot be reached, or where a mirror does
not pass it on. pip-audit then skips packages and calls that success; here it is a failure, said in words.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLEAN, FOUND, NOT_AUDITED = 0, 1, 2
REQUEST_S, WHOLE_S = 10, 300.0


def judge(report: dict[str, Any]) -> tuple[int, str]:
    """Exit code and sentence for a report of pip-audit (its JSON form)."""
    packages = report["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    weak = [(one, weakness) for one in packages for weakness in one.get("vulns", ())]
    lines = [
        f"{one['name']} {one['version']}: {weakness['id']}, mended in {' '.join(weakness['fix_versions']) or 'nothing'}"
        for one, weakness in weak
    ]
    lines.append(f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(weak)} known weaknesses")
    if skipped or not packages:
        lines.append(
            f"NOT AUDITED: {len(skipped)} packages; the advisory service of this package index did not know them. "
            "Run this where the public index can be reached."
        )
    return FOUND if weak else NOT_AUDITED if skipped or not packages else CLEAN, "\n".join(lines)


def audit(requirements: Path, whole_s: float = WHOLE_S) -> tuple[int, str]:
    """Run pip-audit over a compiled list, at most ``whole_s`` seconds."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--require-hashes"]
    command += ["--disable-pip", "--timeout", str(REQUEST_S), "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=whole_s)  # noqa: S603 - our own words
    except subprocess.TimeoutExpired:
        return NOT_AUDITED, f"NOT AUDITED: the advisory service did not answer within {whole_s:g} s."
    try:
        return judge(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1][:200]
        return NOT_AUDITED, f"NOT AUDITED: the advisory service could not be asked ({last})."


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit a list, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requirements", type=Path)
    code, said = audit(parser.parse_args(arguments).requirements)
    print(said, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
