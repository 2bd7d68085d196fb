"""The interface for Python (docs/api.md): what ``import fed_diffmic as fd`` offers, one file for each thing.

Top of the library, like its command line: it starts the simulation, and nothing below knows it.
"""
