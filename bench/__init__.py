"""Measure tickets: latency, memory and size, against dense.

``sparseticket.bench.runner.bench`` is the way in; ``timing`` is the interleaved clock, usable alone; ``candidates``
loads what is measured; ``gpu`` checks and measures the kernels in one command (docs/kernels.md); ``results/`` keeps
measurements worth keeping.
"""
