#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains with several schedules, five seeds each, and prints accuracy against bytes as a Markdown table of the means.

usage: schedule_table.py [--train-digits PROGRAM] [--out FILE]
       schedule_table.py --show FILE

The results go into one file (default: bench/results/schedules.json): {"command": ..., "runs": [...]}. A run is what
train_digits writes with --json, of its first method only and without the curve.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = range(1, 6)
SPLITS = ("iid", "by-label")
# (every, global_every): steps from one average to the next, averages from one exact mean to the next.
SCHEDULES = [(1, 0), (2, 0), (4, 0), (8, 0), (1, 8), (4, 4), (1, 1), (4, 1), (8, 1)]


def train(program, options):
    """The record of one run."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "run.json"
        subprocess.run([program, *options, "--json", file], check=True, stdout=subprocess.DEVNULL)
        record = json.loads(file.read_text(encoding="utf-8"))
    record["results"] = [{key: value for key, value in record["results"][0].items() if key != "curve"}]
    return record


def measure(program):
    """The records of all runs."""
    runs = []
    for every, global_every in SCHEDULES:
        for split in SPLITS:
            for seed in SEEDS:
                options = {"every": every, "global-every": global_every, "split": split, "seed": seed}
                runs.append(train(program, [f"--{name}={value}" for name, value in options.items()]))
        print(f"every {every}, global every {global_every}: done", file=sys.stderr)
    return runs


def table(runs):
    """The rows in Markdown: means over the seeds."""
    groups = {}
    for run in runs:
        options = run["context"]["options"]
        key = options["every"], options["global_every"]
        groups.setdefault(key, {}).setdefault(options["split"], []).append(run["results"][0])
    titles = ["`every`", "`global_every`", "sent by a rank"]
    for split in SPLITS:
        titles += [f"{split.replace('-', ' ')}: merged", "worst"]
    rows = [titles, ["---"] * len(titles)]
    for (every, global_every), by_split in groups.items():
        row = [str(every), str(global_every), f"{by_split[SPLITS[0]][0]['bytes_sent'] / 1e6:.1f} MB"]
        for split in SPLITS:
            for whose in ("merged", "worst"):
                values = [result[f"{whose}_accuracy"] for result in by_split[split]]
                row.append(f"{100 * sum(values) / len(values):.1f} %")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main():
    """Measures or shows. Returns the exit status."""
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ", 1)[1].split("\n\n", 1)[0])
    parser.add_argument("--train-digits", default=ROOT / "build/demo/bin/train_digits", type=pathlib.Path)
    parser.add_argument("--out", default=ROOT / "bench/results/schedules.json", type=pathlib.Path)
    parser.add_argument("--show", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.show is None:
        record = {"command": "bench/schedule_table.py", "runs": measure(arguments.train_digits.resolve())}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    else:
        record = json.loads(arguments.show.read_text(encoding="utf-8"))
    print(table(record["runs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
