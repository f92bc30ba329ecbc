#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The slow-network lab: rounds over TCP between nodes that slow links connect.

usage: lab.py --programs DIR [--hidden] [--json FILE] [--picture FILE.png] [--smoke]

Measures MPI_Allreduce, Kith's rounds and plain TCP streams (rounds.py) or, with --hidden, how much of a round is hidden
(hidden.py). README.md beside this file says how, what the bounds are and what to expect. Needs root, /dev/net/tun and
Open MPI; exits with 77 and the line "skipped: why" where it cannot run.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import sys

import hidden
import nodes
import rounds

SCHEMA_VERSION = 1


def context_of(mpi_context, begun, load_at_start):
    return {
        "schema_version": SCHEMA_VERSION,
        "kith_version": mpi_context["kith_version"],
        "mpi": mpi_context["mpi"]["library"],
        "host": mpi_context["host"],
        "kernel": platform.release(),
        "tcp_rmem": nodes.BUFFERS,
        "tcp_wmem": nodes.BUFFERS,
        "mtu": nodes.MTU,
        "date": begun,
        "load_at_start": load_at_start,
        "load_at_end": os.getloadavg()[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, metavar="DIR",
                        help="folder of kith_bench, delay_switch and tcp_streams")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write context and results to this file")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE",
                        help="also draw time against size, as PNG or SVG")
    parser.add_argument("--mca", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a further parameter for Open MPI, for all that is measured")
    parser.add_argument("--hidden", action="store_true", help="hidden rounds between two nodes instead of the contest")
    parser.add_argument("--smoke", action="store_true", help="two nodes, a few seconds: that the lab works")
    arguments = parser.parse_args()
    if arguments.picture and arguments.hidden:
        parser.error("--picture draws the contest; it does not go with --hidden")
    studies = [rounds, hidden] if arguments.smoke else [hidden if arguments.hidden else rounds]
    mpirun = shutil.which("mpirun.openmpi") or shutil.which("mpirun")
    if mpirun is None or "open-mpi" not in nodes.run(mpirun, "--version"):
        nodes.skip("Open MPI is not installed")
    for file in (arguments.json, arguments.picture):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"there is no folder for {file}")
    if nodes.INSIDE not in os.environ:
        sys.exit(nodes.reenter())
    nodes.prepare()
    command = [mpirun, *(word for name, value in arguments.mca for word in ("--mca", name, value))]
    begun = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    load_at_start = os.getloadavg()[0]
    record = {"context": {}, "results": [], "switches": []}
    checks = []
    for study in studies:
        for setting in study.settings(arguments.smoke):
            with nodes.connect(setting, arguments.programs) as counters:
                study.print_head(setting)
                control = nodes.congestion_control()
                results, mpi_context = study.measure(setting, arguments.programs, command)
            record["results"] += results
            checks.append((study.check, results))
            record["switches"].append({"network": setting.title} | counters)
            print(f"the switch delivered {counters['frames']} frames, {counters['late_us_mean']:.0f} us late on "
                  f"average, {counters['late_us_max']:.0f} us at most, and dropped {counters['dropped']}", flush=True)
    record["context"] = context_of(mpi_context, begun, load_at_start) | {
        "tcp_congestion_control": control, "mca": dict(arguments.mca)}
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if arguments.picture:
        rounds.draw(record, arguments.picture)
    for check, results in checks:
        check(results)


if __name__ == "__main__":
    main()
