# SPDX-License-Identifier: Apache-2.0
"""usage: lost_peer.py FOLDER stop|kill own|allocated|messages|hidden RANKS LAUNCHER [OPTION ...] PROGRAM

Starts lost_peer under mpirun, waits for what the ranks find, wakes up the one that was stopped, and ends them all. The
launcher's own status says nothing here: one of its ranks has been killed, or none has ended MPI.
"""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

folder, how, way, ranks = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
*launcher, program = sys.argv[5:]
victim = 1


def wait_for(paths, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not all(path.exists() for path in paths):
        time.sleep(0.02)
    return [path for path in paths if not path.exists()]


shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
job = subprocess.Popen([*launcher, "-n", str(ranks), program, str(folder), how, way], start_new_session=True)
try:
    survivors = [folder / f"done.{rank}" for rank in range(ranks) if rank != victim]
    wrong = [f"{path.name} is missing" for path in wait_for(survivors, 60)]
    if how == "stop" and not wrong:
        os.kill(int((folder / f"pid.{victim}").read_text()), signal.SIGCONT)
        woken = folder / f"done.{victim}"
        wrong += [f"{path.name} is missing" for path in wait_for([woken], 30)]
        survivors.append(woken)
    for path in survivors:
        if path.exists():
            took = path.with_name(path.name.replace("done", "took"))
            print(path.name, path.read_text(), "|", took.read_text() if took.exists() else "")
            if path.read_text() != "ok":
                wrong.append(f"{path.name}: {path.read_text()}")
finally:
    (folder / "end").touch()
    try:
        job.wait(10)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if (folder / f"pid.{victim}").exists() and how == "stop":
        try:
            os.kill(int((folder / f"pid.{victim}").read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
sys.exit("; ".join(wrong) if wrong else 0)
