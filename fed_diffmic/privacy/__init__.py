"""Differential privacy of a site: accounting, unit of privacy, ledger, and the private local update."""
