"""Measure tickets: latency, memory and size, against dense.

``sparseticket.bench.runner.bench`` is the way in; ``timing`` is the interleaved clock, usable alone; ``candidates``
loads what is measured; ``results/`` keeps measurements worth keeping.
"""
