"""``sparseticket env``."""

from __future__ import annotations


def env() -> None:
    """Show versions, the GPU, and which kernels can run."""
    from sparseticket.environment import describe
    from sparseticket.kernels.available import report
    from sparseticket.progress import Screen
    from sparseticket.show import show_environment

    show_environment(Screen(), describe() | {"kernels": report()})
