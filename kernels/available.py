"""Which kernels can run here, and why not; and which table decides."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from sparseticket.kernels.dispatch import find_table

LEAST_CAPABILITY = (8, 0)  # bf16 and cp.async; sparse tensor cores too
TRITON = ("bsr_linear", "bsr_linear_packed", "bsr_conv2d", "bitmap_linear", "masked_linear", "masked optimizers")


def report() -> dict[str, str]:
    """Each kernel by name, and the table: ``runs``, or what is in the way (then its reference or dense runs)."""
    obstacle = _obstacle()
    state = f"no: {obstacle}" if obstacle else "runs"
    found = dict.fromkeys(TRITON, state) | {"2:4": _two_of_four(obstacle)}
    if not torch.cuda.is_available():
        return found | {"table": "none: without a GPU every layer runs dense"}
    name = torch.cuda.get_device_name()
    path = find_table(name)
    advice = "run `sparseticket tune-kernels`; until then layers run dense unless training measures its own"
    return found | {"table": str(path) if path else f"none for {name}: {advice}"}


def _obstacle() -> str | None:
    """What keeps Triton's kernels from running."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "no GPU that torch can use; the references run"
    if torch.version.hip:
        return "they were written for NVIDIA's GPUs, and not tried on others"
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name()} is older than sm_80"
    return None


def _two_of_four(obstacle: str | None) -> str:
    if obstacle:
        return f"no: {obstacle}"
    library = getattr(torch.backends, "cusparselt", None)
    return "runs" if library and library.is_available() else "no: this build of torch has no cuSPARSELt"
