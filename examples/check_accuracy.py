#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what train_digits promises of its defaults: means over five seeds, for both ways to split the data.

usage: check_accuracy.py PROGRAM [OPTION...]     the options go to the program

Prints the accuracies of every seed, their means, and each claim with what was found; exits 1 if one does not hold.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

SEEDS = range(1, 6)
COLUMNS = [("kith", "merged"), ("kith", "worst"), ("all_reduce", "merged"), ("isolated", "mean"), ("isolated", "worst")]


def train(program, options):
    """The results of one run, by method."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "results.json")
        subprocess.run([*program, *options, "--json", file], check=True, stdout=subprocess.DEVNULL)
        return {result["name"]: result for result in json.loads(file.read_text(encoding="utf-8"))["results"]}


def means_of(program, split):
    """Runs all seeds, prints their accuracies as a table and returns the means by column."""
    print(f"\n--split {split}: accuracy on the held-out digits")
    print("seed  " + "  ".join(f"{method} {whose}".rjust(17) for method, whose in COLUMNS))
    sums = dict.fromkeys(COLUMNS, 0.0)
    for seed in SEEDS:
        results = train(program, ["--split", split, "--seed", str(seed)])
        row = [results[method][f"{whose}_accuracy"] for method, whose in COLUMNS]
        print(f"{seed:4}  " + "  ".join(f"{value:17.4f}" for value in row), flush=True)
        for column, value in zip(COLUMNS, row):
            sums[column] += value
    means = {column: total / len(SEEDS) for column, total in sums.items()}
    print("mean  " + "  ".join(f"{means[column]:17.4f}" for column in COLUMNS) + "\n")
    return means


def main():
    """Checks the claims. Returns the exit status."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    held = []

    def claim(text, found, least, most=1.0):
        held.append(least <= found <= most)
        print(f"{'ok    ' if held[-1] else 'FAILED'}  {text}: {found:.4f}")

    iid = means_of(sys.argv[1:], "iid")
    gap = abs(iid["kith", "merged"] - iid["all_reduce", "merged"])
    claim("merged model >= 0.955", iid["kith", "merged"], 0.955)
    claim("within 0.01 of all-reduce", gap, 0, 0.01)
    claim("worst worker >= 0.95", iid["kith", "worst"], 0.95)
    claim("isolated workers near 0.90, the worst", iid["isolated", "worst"], 0.88, 0.92)
    claim("isolated workers near 0.90, the mean", iid["isolated", "mean"], 0.88, 0.94)

    by_label = means_of(sys.argv[1:], "by-label")
    gap = abs(by_label["kith", "merged"] - by_label["all_reduce", "merged"])
    claim("merged model >= 0.93", by_label["kith", "merged"], 0.93)
    claim("within 0.02 of all-reduce", gap, 0, 0.02)
    claim("isolated workers <= 0.6, the mean", by_label["isolated", "mean"], 0, 0.6)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
