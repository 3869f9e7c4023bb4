"""``python -m sparseticket`` is ``sparseticket``, for launchers that take a module."""

from sparseticket.cli import main

main()
