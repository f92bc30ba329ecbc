#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what train_digits promises: means over five seeds, for both ways to split the data.

usage: check_accuracy.py PROGRAM [OPTION...]     the options go to the program

Prints the accuracies of every seed, their means, and each claim with what was found; exits 1 if one does not hold.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

SEEDS = range(1, 6)
INT8, INT4, TOP_K, NAIVE = "choco:int8-block", "choco:int4-block", "choco:top-k:0.01", "direct:int4-block"
EXCHANGES = ["full-precision", INT8, INT4, TOP_K, NAIVE]
ACCURACIES = ["merged", "worst", "mean"]


def train(program, options):
    """The results of one run, by method."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "results.json")
        subprocess.run([*program, *options, "--json", file], check=True, stdout=subprocess.DEVNULL)
        return {result["name"]: result for result in json.loads(file.read_text(encoding="utf-8"))["results"]}


def means_of(program, split):
    """Runs all seeds, prints their accuracies as a table; returns the means by method, and those of its figures."""
    options = ["--split", split, "--exchange", ",".join(EXCHANGES)]
    runs = [train(program, [*options, "--seed", str(seed)]) for seed in SEEDS]
    print(f"\n--split {split}: accuracy on the held-out digits")
    print(" " * 26 + "".join(f"seed {seed}".rjust(9) for seed in SEEDS) + "     mean")
    means = {}
    for method in runs[0]:
        for whose in ACCURACIES:
            values = [run[method][f"{whose}_accuracy"] for run in runs]
            means[method, whose] = sum(values) / len(values)
            print(f"{method:18}{whose:8}" + "".join(f"{value:9.4f}" for value in [*values, means[method, whose]]))
        means[method, "bytes"] = runs[0][method]["bytes_sent"]  # the same for every seed
    print()
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

    def loss(means, exchange):
        return means["kith", "merged"] - means[exchange, "merged"]

    def share(means, exchange):
        return means[exchange, "bytes"] / means["kith", "bytes"]

    iid = means_of(sys.argv[1:], "iid")
    claim("merged model >= 0.955", iid["kith", "merged"], 0.955)
    claim("within 0.01 of all-reduce", abs(loss(iid, "all_reduce")), 0, 0.01)
    claim("worst worker >= 0.95", iid["kith", "worst"], 0.95)
    claim("isolated workers near 0.90, the worst", iid["isolated", "worst"], 0.88, 0.92)
    claim("isolated workers near 0.90, the mean", iid["isolated", "mean"], 0.88, 0.94)
    claim(f"{TOP_K} loses <= 0.02", loss(iid, TOP_K), -1, 0.02)
    claim(f"{TOP_K} sends <= 3 % of the bytes", share(iid, TOP_K), 0, 0.03)

    by_label = means_of(sys.argv[1:], "by-label")
    claim("merged model >= 0.93", by_label["kith", "merged"], 0.93)
    claim("within 0.02 of all-reduce", abs(loss(by_label, "all_reduce")), 0, 0.02)
    claim("isolated workers <= 0.6, the mean", by_label["isolated", "mean"], 0, 0.6)
    # What stays between the models at the codec's plateau is what a worker's own model misses.
    gap = by_label["kith", "mean"] - by_label[NAIVE, "mean"]
    claim(f"{NAIVE} is visibly worse: the mean worker loses >= 0.01", gap, 0.01)
    claim(f"{INT4}, in as many bytes, does not: <= 0.005", by_label["kith", "mean"] - by_label[INT4, "mean"], -1, 0.005)

    for split, means in ("iid", iid), ("by-label", by_label):
        for exchange, most in (INT8, 0.26), (INT4, 0.15):
            claim(f"{split}: {exchange} loses <= 0.005", loss(means, exchange), -1, 0.005)
            claim(f"{split}: {exchange} sends <= {100 * most:.0f} % of the bytes", share(means, exchange), 0, most)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
