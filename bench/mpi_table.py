#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures `kith_bench round --engine mpi` for several numbers of ranks, and prints the figures as a Markdown table.

usage: mpi_table.py [--bench KITH_BENCH] [--mpirun "mpirun OPTIONS"] [--ranks 2,4,8] [--out FILE] [-- ARGUMENTS]
       mpi_table.py --show FILE

What stands behind `--` goes to kith_bench, instead of: -b 4 -e 100M --memory own,allocated. The results of all runs go
into one file (default: bench/results/mpi.json): {"contexts": [...], "results": [...]}, where each context has the command
line of its mpirun, too.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHOWN_BYTES = [4, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 25 << 20, 100 << 20]
DEFAULT_SWEEP = ["-b", "4", "-e", "100M", "--memory", "own,allocated"]
ONE_PEER, RING = "one-peer-exponential", "ring"
# The columns: a title, and (topology, memory, key, key of what it is divided by).
COLUMNS = [
    ("`MPI_Allreduce`", (ONE_PEER, "own", "mpi_allreduce", None)),
    ("`MPI_Sendrecv` by hand", (ONE_PEER, "own", "by_hand", None)),
    ("Kith one-peer", (ONE_PEER, "own", "time", None)),
    ("/ all-reduce", (ONE_PEER, "own", "time", "mpi_allreduce")),
    ("/ by hand", (ONE_PEER, "own", "time", "by_hand")),
    ("allocated", (ONE_PEER, "allocated", "time", None)),
    ("/ by hand", (ONE_PEER, "allocated", "time", "by_hand")),
    ("`MPI_Neighbor_alltoall`", (RING, "own", "mpi_neighbor", None)),
    ("Kith ring", (RING, "own", "time", None)),
    ("/ neighbor", (RING, "own", "time", "mpi_neighbor")),
    ("allocated", (RING, "allocated", "time", None)),
    ("/ neighbor", (RING, "allocated", "time", "mpi_neighbor")),
]


def default_launcher(mpirun="mpirun"):
    """The launcher's command: Open MPI refuses, and waits busily for, more ranks than cores if it is not told."""
    version = subprocess.run([mpirun, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             check=False).stdout
    return f"{mpirun} --oversubscribe --bind-to none" if "Open MPI" in version or "OpenRTE" in version else mpirun


def measure(bench, launcher, ranks, sweep):
    """One run; its record."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "mpi.json"
        arguments = ["round", "--engine", "mpi", *sweep]
        command = [*shlex.split(launcher), "-n", str(ranks), str(bench), *arguments, "--json", str(file)]
        print("$ " + shlex.join(command), flush=True)
        subprocess.run(command, check=True)
        record = json.loads(file.read_text(encoding="utf-8"))
    # What was typed, without the names of this machine's folders.
    record["context"]["command_line"] = shlex.join(["kith_bench", *arguments])
    record["context"]["mpirun"] = shlex.join([*shlex.split(launcher), "-n", str(ranks)])
    return record


def size_text(size):
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def time_text(us):
    for unit, name in ((1e6, "s"), (1e3, "ms")):
        if us >= unit:
            return f"{us / unit:.3g} {name}"
    return f"{us:.3g} us"


def table(results):
    """The rows in Markdown; an empty cell where a figure was not measured."""
    by_line = {(r["ranks"], r["bytes"], r["topology"], r["memory"]): r for r in results if r["dtype"] == "f32"}
    titles = ["ranks", "model", *(title for title, _ in COLUMNS)]
    lines = [titles, ["--:"] * len(titles)]
    for ranks, size in sorted({key[:2] for key in by_line if key[1] in SHOWN_BYTES}):
        row = [str(ranks), size_text(size)]
        for _, (topology, memory, key, divisor) in COLUMNS:
            line = by_line.get((ranks, size, topology, memory), {})
            value, of = line.get(f"{key}_us_p50"), line.get(f"{divisor}_us_p50")
            if value is None or (divisor and not of):
                row.append("")
            else:
                row.append(f"{value / of:.2f}" if divisor else time_text(value))
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "build/bench/bin/kith_bench")
    parser.add_argument("--mpirun", help="launcher with its options, without -n")
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench/results/mpi.json")
    parser.add_argument("--show", type=pathlib.Path, help="only print the table of this file")
    parser.add_argument("arguments", nargs="*", default=DEFAULT_SWEEP,
                        help="for kith_bench, behind --")
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.show.read_text(encoding="utf-8"))["results"]))
        return
    launcher = options.mpirun or default_launcher()
    try:
        records = [measure(options.bench, launcher, int(ranks), options.arguments)
                   for ranks in options.ranks.split(",")]
    except subprocess.CalledProcessError as error:
        sys.exit(f"kith_bench ended with status {error.returncode}")
    merged = {"contexts": [r["context"] for r in records], "results": [line for r in records for line in r["results"]]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
    print(f"{options.out}\n\n{table(merged['results'])}")


if __name__ == "__main__":
    main()
