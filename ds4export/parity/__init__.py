"""Proof that an exported graph computes what the PyTorch definition computes.

Owns the scenario, the comparison with the reference at every level, coverage, the search for the first tensor that
diverges, recorded vectors, and the report. Refuses a verdict without coverage: a run that did not see what it should
have seen fails. The same checks are a pytest suite: `pytest --pyargs ds4export.parity --artefact PATH`.
"""
