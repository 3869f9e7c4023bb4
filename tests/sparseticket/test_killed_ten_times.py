"""The long proof of resuming, on the embedded default; `make proof` runs it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparseticket.ticket import Ticket

ROOT = Path(__file__).parents[2]
FIND = "find --model resnet20-cifar --task digits --schedule linear:0.3 --sparsity 0.6 --round-length 24it".split()
FIND += "--batch-size 32 --checkpoint-every 0.2".split()
# kills itself just before the n-th file would get its name: the temporary file lies there, whole or in part
DURING_A_WRITE = """
import os, signal, sys
sys.path.insert(0, {root!r})
left = [{n}]
rename = os.replace
def replace(source, target):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
from sparseticket.cli import main
main()
"""


def start(out, script):
    command = [sys.executable, "-c", script, *FIND, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines(out):
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.proof
def test_a_run_killed_ten_times_and_twice_during_a_write_gives_the_ticket_of_an_undisturbed_one(tmp_path):
    plain = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom sparseticket.cli import main; main()"
    begun = time.monotonic()
    assert start(tmp_path / "whole", plain).wait() == 0
    print(f"an undisturbed run takes {time.monotonic() - begun:.0f} s")
    out, draw = tmp_path / "killed", random.Random(1)
    for kill in range(10):
        if kill in (3, 7):
            process = start(out, DURING_A_WRITE.format(root=str(ROOT), n=draw.randint(2, 6)))
            assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
            assert list(out.rglob("*.part")), "the kill was to come during a write"
        else:
            process = start(out, plain)
            wanted = lines(out) + draw.randint(2, 9)
            while process.poll() is None and lines(out) < wanted:
                time.sleep(0.005)
            assert process.poll() is None, (
                "the run ended before it was killed: " + process.stderr.read().decode()[-2000:]
            )
            process.send_signal(signal.SIGKILL)
            process.wait()
        print(f"kill {kill + 1}: {lines(out)} steps logged, rounds finished: {len(list(out.glob('round-*/done')))}")
    assert start(out, plain).wait() == 0
    tickets = [folder / "round-02" / "ticket.ticket" for folder in (tmp_path / "whole", out)]
    print("identities:", *(Ticket.load(path).identity for path in tickets))
    assert tickets[0].read_bytes() == tickets[1].read_bytes()
    models = [path.parent / "model" / "model.safetensors" for path in tickets]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert not list(out.rglob("*.part"))
    assert os.path.getsize(out / "summary.json")
