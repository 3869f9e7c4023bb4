"""Pruned linear layers and a pruned BERT-base on a CPU: ONNX Runtime dense, in INT8, and with the sparse operator.

``python -m sparseticket.bench.sparse_cpu`` measures everything, cell by cell, in one JSON. ``networks`` makes the
files, ``cells`` says what is measured, ``measure`` takes the times, ``peer`` lets DeepSparse take turns from an
environment of its own, ``table`` prints it beside what was wanted.
"""
