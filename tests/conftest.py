"""One thread a process: the models are tiny, and pytest runs one process a core. Set before torch is imported.

On the CPU also where there is a GPU: results are compared bit for bit.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
