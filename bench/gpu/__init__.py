"""The one command that checks and measures the kernels on a GPU: ``python -m sparseticket.bench.gpu --out DIR``.

An entry measures one thing and leaves one figure, a JSON file that is written whole; a mark is a threshold that one or
more figures have to reach. Running the command again does what is still missing.
"""
