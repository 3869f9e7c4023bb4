"""DeepSparse in a process of another Python, called by turns: a line asks for one call, a line says that it is done."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import numpy as np

from sparseticket.errors import RunFailure

DEEPSPARSE = "DeepSparse"
# Alone in the other environment: nothing of this package is there.
SCRIPT = """
import json, sys
import numpy as np
from deepsparse import Engine

job = json.loads(sys.argv[1])
with np.load(job["inputs"]) as stored:
    arrays = [stored[name] for name in job["order"]]
shapes = str([list(array.shape) for array in arrays])
engine = Engine(job["model"], batch_size=1, num_cores=job["threads"], input_shapes=shapes)
print("ready", flush=True)
for line in sys.stdin:
    engine.run(arrays)
    print("done", flush=True)
"""


class DeepSparse:
    """The dense, pruned ONNX ``file`` in DeepSparse; a context that ends its process."""

    def __init__(self, python: Path, file: Path, feeds: dict[str, np.ndarray], threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        inputs = Path(self._folder.name) / "inputs.npz"
        np.savez(inputs, **feeds)
        job = {"model": str(file), "inputs": str(inputs), "order": list(feeds), "threads": threads}
        self._messages = (Path(self._folder.name) / "messages").open("w+")
        self._process = subprocess.Popen(
            [python, "-c", SCRIPT, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )

    def __enter__(self) -> Self:
        self._wait_for("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._messages.close()
        self._folder.cleanup()

    def call(self) -> None:
        """One call of the model; the pipe adds about 0.05 ms."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        self._wait_for("done")

    def _wait_for(self, word: str) -> None:
        for line in self._process.stdout:  # its banner is on the same stream
            if line.strip() == word:
                return
        self._messages.seek(0)
        last = (self._messages.read().strip().splitlines() or ["it said nothing"])[-1]
        raise RunFailure(f"DeepSparse ended before it was {word}: {last}")
