"""One thread a process: the models are tiny, and pytest runs one process a core. Set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
