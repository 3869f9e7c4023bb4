"""One thread a process: the models are tiny, and pytest runs one process a core. Set before torch is imported.

On the CPU also where there is a GPU: results are compared bit for bit.
"""

import gc
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module", autouse=True)
def imported_lives_on():
    """No garbage is looked for in what is imported by now: a training collects once, which took 0.35 s with that."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # nanobind tells at the end of what is not collected


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    """Token ids that tests keep are not put among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SPARSETICKET_CACHE", str(folder))
        yield folder
