"""How long a model takes to load, and how much memory it and one call take: in a process of its own.

In one process the second model would find the runtime's memory and caches as the first left them. Loading PyTorch or
ONNX Runtime themselves is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sparseticket
from sparseticket.bench.machine import peak_memory
from sparseticket.bench.sessions import PLAINLY, TorchCall, open_session
from sparseticket.errors import RunFailure


@dataclass(frozen=True)
class Alone:
    """Milliseconds to load, and bytes of resident memory that loading and one call took at their peak."""

    load_ms: float
    memory_bytes: int | None  # None on a GPU, where the call compiles first, and where the system cannot tell


def measure_alone(
    runtime: str,
    path: Path,
    device: str,
    inputs: Mapping[str, np.ndarray],
    threads: int,
    how: TorchCall = PLAINLY,
    *,
    name: str,
) -> Alone:
    """Load ``path`` and call it once in a new process, its file read before (a cold disk is not its fault).

    Raises:
        RunFailure: the process ended badly (killed for its memory, for one).
    """
    package_root = str(Path(sparseticket.__file__).absolute().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        arrays, result = Path(folder) / "inputs.npz", Path(folder) / "result.json"
        np.savez(arrays, **inputs)
        job = {
            "runtime": runtime,
            "path": str(path),
            "device": device,
            "threads": threads,
            "inputs": str(arrays),
            "how": how._replace(ticket=how.ticket and str(how.ticket)),
        }
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sparseticket.bench.alone", json.dumps(job), str(result)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if done.returncode or not result.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RunFailure(
                f"{name} could not be loaded and run in a process of its own (exit code {done.returncode}): {last}"
            )
        return Alone(**json.loads(result.read_text()))


def main() -> None:
    """The new process: a job as JSON, and the file that its result goes into."""
    job = json.loads(sys.argv[1])
    with np.load(job["inputs"]) as stored:
        inputs = dict(stored)
    _load_runtime(job["runtime"], job["device"], job["threads"])
    with peak_memory() as memory:
        begun = time.perf_counter()
        dtype, launched, ticket = job["how"]
        how = TorchCall(dtype, launched, ticket and Path(ticket))
        session = open_session(job["runtime"], Path(job["path"]), job["device"], inputs, job["threads"], how)
        load_ms = 1000 * (time.perf_counter() - begun)
        session.call()
        if session.synchronize is not None:
            session.synchronize()
    of_the_model = job["device"] == "cpu" and how.launched != "compiled"
    found = {"load_ms": load_ms, "memory_bytes": memory.bytes if of_the_model else None}
    Path(sys.argv[2]).write_text(json.dumps(found))


def _load_runtime(runtime: str, device: str, threads: int) -> None:
    """Import it and wake the GPU: neither is the model's doing."""
    if runtime not in ("pytorch", "pt2"):
        import onnxruntime

        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), device, 0)
        return
    import torch
    from transformers import AutoModel  # noqa: F401  (it is imported when it is first asked for)

    if runtime == "pt2":
        import torch._inductor.package

        import sparseticket.export.to_pt2
        import sparseticket.kernels.bsr_packed
        import sparseticket.kernels.conv2d  # noqa: F401  (what loading a program would import)
    torch.set_num_threads(threads)
    torch.zeros(1, device=device)


if __name__ == "__main__":
    main()
