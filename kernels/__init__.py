"""Run tickets fast: Triton kernels, each beside its plain reference. Filled by a later issue.

Harmless under the top-level name ``kernels`` too, which transformers looks for when this repository is on the path.
"""
