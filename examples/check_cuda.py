#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that train_digits_cuda trains as train_digits does, and what else it promises.

usage: check_cuda.py TRAIN_DIGITS COMMAND...     the command runs train_digits_cuda; options are added to it
"""

import pathlib
import re
import subprocess
import sys
import tempfile

# Without communication the merged model of these workers reads a third of the digits.
OPTIONS = ["--ranks", "4", "--steps", "60", "--split", "by-label"]
TOLERANCE = 1.0  # percentage points, 3.6 of the 359 digits: GPUs fuse and round in ways of their own


def run(command, status=0):
    """Runs a command, shows and returns what it prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"$ {' '.join(map(str, command))}\n{done.stdout}", flush=True)
    if done.returncode != status:
        sys.exit(f"FAILED: exit status {done.returncode}, expected {status}")
    return done.stdout


def accuracy(text):
    """What the merged model reads, in percent."""
    return float(re.search(r"^The merged model reads ([\d.]+) %", text, re.MULTILINE).group(1))


def main():
    """Runs both programs. Returns the exit status."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    reference, command = sys.argv[1], sys.argv[2:]

    on_host = accuracy(run([reference, *OPTIONS]))
    text = run([*command, *OPTIONS])
    failures = []
    if abs(accuracy(text) - on_host) > TOLERANCE:
        failures.append(f"{accuracy(text)} % on GPUs, {on_host} % on the host: the same training should give the same")
    if "all ranks hold it" not in text:
        failures.append("the ranks' models differ after the final merge")

    with tempfile.TemporaryDirectory() as folder:
        meeting = pathlib.Path(folder, "id")
        run([*command, "--ranks", "1", "--rank", "0", "--id-file", meeting, "--steps", "5"])
        if meeting.exists():
            failures.append("the id file is still there")
    if "start processes instead" not in run([*command, "--ranks", "1000"], status=1):
        failures.append("does not say what to do where ranks are more than GPUs")
    run([*command, "--ranks", "2", "--rank", "1"], status=2)  # without the file

    print("\n".join(f"FAILED: {failure}" for failure in failures) or "all of it holds")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
