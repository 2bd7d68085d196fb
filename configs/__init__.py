"""The configuration that travels with the package: defaults, and the options of each group (YAML)."""
