"""Is this site ready? Every check before the first round, each with its cause and what to do (docs/preflight.md)."""
