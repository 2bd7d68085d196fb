"""Experiments: many simulated runs that differ in named ways, as one table and one report.

An experiment is a file (``configs/experiment/NAME.yaml``, or a user's own): settings common to all runs, and axes
along which they differ. ``definition`` makes its cells, ``runner`` runs those that are not done, ``table`` gathers the
metrics, ``compare`` and ``report`` say what they show.
"""
