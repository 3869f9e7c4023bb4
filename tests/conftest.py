"""One thread a process: the models are tiny, and pytest runs one process a core. Set before torch is imported.

On the CPU also where there is a GPU: results are compared bit for bit.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    """Token ids that tests keep are not put among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SPARSETICKET_CACHE", str(folder))
        yield folder
