import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the process in /proc")
def test_a_cancelled_measurement_leaves_no_process_and_no_files(bert_onnx, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "sparseticket", "bench", str(bert_onnx), "--out", str(tmp_path / "out")]
    running = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(scratch)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    measuring: list[int] = []
    while not measuring and running.poll() is None:
        time.sleep(0.01)
        measuring = [child for child in children(running.pid) if any(scratch.glob("*/inputs.npz"))]
    time.sleep(0.3)  # a process that is only just being started would be let go, and end by itself
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM, running.stderr.read()
    assert not any(Path(f"/proc/{child}").exists() for child in measuring)
    assert not any(scratch.glob("*/inputs.npz")) and not (tmp_path / "out" / "bench.json").exists()
