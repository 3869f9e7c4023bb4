"""``sparseticket env``."""

from __future__ import annotations


def env() -> None:
    """Show versions, the GPU, and which kernels can run, and whether the CPU's sparse operator can."""
    from sparseticket.environment import describe
    from sparseticket.export import native
    from sparseticket.kernels.available import report
    from sparseticket.progress import Screen
    from sparseticket.show import show_environment

    show_environment(Screen(), describe() | {"kernels": report() | {"sparse operator (CPU)": native.report()}})
