#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what kith_bench has recorded: time against size, and how far the models are apart against the bytes sent; and
what train_digits has learned against the bytes sent.

usage: plot.py [--out DIR] [--format png|svg] FILE.json...

Writes round.png, allreduce.png, mix.png and, of train_digits, train_digits.png: those that the files have results of. Runs
of train_digits that differ in the seed are averaged.
Needs matplotlib (Debian: python3-matplotlib); exits 77 where it is missing.
"""

import argparse
import json
import pathlib
import sys

try:
    import matplotlib
except ImportError:
    print("skipped: matplotlib is not installed")
    sys.exit(77)
matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as pyplot  # noqa: E402

COLUMNS = 3  # panels beside each other
# What a user would write instead, by its key: what the legend calls it, and how it is drawn.
RIVALS = {"by_hand": ("by hand", ":"), "mpi_allreduce": ("MPI_Allreduce", "-."),
          "mpi_neighbor": ("MPI_Neighbor_alltoallv", (0, (1, 4)))}


def read(files):
    """The results of all files of kith_bench, and the contexts they were made in; the records of train_digits."""
    results, contexts, trained = [], [], []
    for file in files:
        record = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
        if "runs" in record or "seed" in record.get("context", {}):
            trained += record.get("runs", [record])  # of several: see results/train_digits.json
            continue
        for context in record.get("contexts") or [record["context"]]:  # of several runs: see mpi_table.py
            if context["schema_version"] != 1:
                sys.exit(f"{file}: schema_version {context['schema_version']} is not known here")
            contexts.append(context)
        results += record["results"]
    return results, contexts, trained


def panels(keys):
    """A figure with one pair of axes for each key, and those axes by key."""
    keys = sorted(keys)
    rows = -(-len(keys) // COLUMNS)
    columns = min(COLUMNS, len(keys))
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.9 * rows), squeeze=False, sharey=True)
    for spare in axes.flat[len(keys):]:
        spare.set_visible(False)
    return figure, dict(zip(keys, axes.flat))


def add_legend(figure, axes):
    """One legend for all panels, beside them."""
    entries = {}
    for axis in axes.values():
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def finish(figure, title, contexts, path):
    """Says what and where it was measured, and writes the picture."""
    machine = {f"{c['host']['cpu']}, {c['host']['cores']} cores; {c['compiler']}, {c['compiler_flags']}"
               for c in contexts}
    figure.suptitle(title + "\n" + "; ".join(sorted(machine)), fontsize=9)
    save(figure, path)


def save(figure, path):
    """Writes the picture."""
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    print(path)


def label_of(result):
    """What a curve is about."""
    kind = "MPI" if result["engine"] == "mpi" else ""
    memory = "allocated" if result.get("memory") == "allocated" else ""
    return " ".join(filter(None, [result["topology"], kind, memory]))


def draw_times(name, results, contexts, path):
    """Time of a call against the size of the model: one panel per number of ranks and element type."""
    figure, axes = panels({(r["ranks"], r["dtype"]) for r in results})
    for (ranks, dtype), axis in axes.items():
        mine = [r for r in results if (r["ranks"], r["dtype"]) == (ranks, dtype)]
        for i, label in enumerate(dict.fromkeys(map(label_of, mine))):
            line = sorted((r for r in mine if label_of(r) == label), key=lambda r: r["bytes"])
            sizes = [r["bytes"] for r in line]
            colour = f"C{i}"
            axis.plot(sizes, [r["time_us_p50"] for r in line], "o-", color=colour, markersize=3, label=label)
            axis.fill_between(sizes, [r["time_us_p25"] for r in line], [r["time_us_p75"] for r in line], color=colour,
                              alpha=0.2)
            for rival, (title, style) in RIVALS.items():
                # They do not depend on where Kith's model lies, nor MPI_Allreduce on the topology.
                measured = [r for r in line if f"{rival}_us_p50" in r and r.get("memory", "own") == "own"]
                alike = rival == "mpi_allreduce"
                if measured and not (alike and i > 0):
                    axis.plot([r["bytes"] for r in measured], [r[f"{rival}_us_p50"] for r in measured], linestyle=style,
                              color="black" if alike else colour, label=title if alike else f"{label}, {title}")
            if i == 0:  # the limit does not depend on the topology
                axis.plot(sizes, [r["limit_us_p50"] for r in line], "--", color="black", label="limit: x = c*x")
        axis.set(xscale="log", yscale="log", title=f"{ranks} ranks, {dtype}", xlabel="model of one rank (bytes)")
        axis.grid(alpha=0.3)
    next(iter(axes.values())).set_ylabel("time of a call (us), median and quartiles")
    add_legend(figure, axes)
    finish(figure, f"kith_bench {name}", contexts, path)


def draw_mixing(results, contexts, path):
    """Consensus distance against what the busiest rank has sent: one panel per number of ranks."""
    figure, axes = panels({r["ranks"] for r in results})
    floor = 1e-6  # an exact mean would be off the logarithmic scale
    for ranks, axis in axes.items():
        for i, result in enumerate(r for r in results if r["ranks"] == ranks):
            models = [point["bytes_sent"] / result["bytes"] for point in result["curve"]]
            distances = [max(point["relative_distance"], floor) for point in result["curve"]]
            axis.plot(models, distances, ["-", "--", ":"][i // 10 % 3], color=f"C{i % 10}", marker=".", markersize=4,
                      label=result["topology"])
        axis.set(xscale="symlog", yscale="log", title=f"{ranks} ranks", xlabel="sent by the busiest rank (models)")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    next(iter(axes.values())).set_ylabel("consensus distance, relative to the start")
    add_legend(figure, axes)
    finish(figure, "kith_bench mix (what is below 1e-6 is drawn there)", contexts, path)


def draw_accuracy(trained, path):
    """Accuracy of the merged model against what a rank has sent: one panel per split, the mean over the seeds."""
    keys = ["split", "ranks", "topology"]
    groups = {}
    for record in trained:
        key = tuple(record["context"]["options"][k] for k in keys)
        groups.setdefault(key, []).append(record)
    figure, axes = panels(groups)
    for (split, ranks, topology), axis in axes.items():
        runs = groups[split, ranks, topology]
        for i, name in enumerate(dict.fromkeys(r["name"] for run in runs for r in run["results"])):
            curves = [r["curve"] for run in runs for r in run["results"] if r["name"] == name]
            if curves[0][-1]["bytes_sent"] == 0:  # isolated workers have no place on a logarithmic axis
                continue
            megabytes = [point["bytes_sent"] / 1e6 for point in curves[0]]
            accuracy = [sum(point["accuracy"] for point in points) / len(points) for points in zip(*curves)]
            # Direct would hide below Choco, which sends as many bytes.
            axis.plot(megabytes, accuracy, ":" if name.startswith("direct") else "-", marker=".", markersize=4,
                      color=f"C{i}", zorder=3 if name.startswith("direct") else 2,
                      label="full precision" if name == "kith" else name.replace("_", "-"))
        axis.axhline(runs[0]["context"]["target_accuracy"], color="black", linewidth=0.5, linestyle="--")
        axis.set(xscale="log", title=f"{split}: {ranks} workers, {topology}", xlabel="sent by a rank (MB)")
        axis.set_ylim(0.7, 1)
        axis.grid(alpha=0.3)
    next(iter(axes.values())).set_ylabel("accuracy of the merged model")
    add_legend(figure, axes)
    seeds = len({record["context"]["seed"] for record in trained})
    figure.suptitle(f"train_digits: mean of {seeds} seeds", fontsize=9)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE.json")
    parser.add_argument("--out", default=".", help="folder for the pictures")
    parser.add_argument("--format", default="png", choices=["png", "svg"])
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    results, contexts, trained = read(arguments.files)
    drawn = False
    for name in ("round", "allreduce"):
        if mine := [r for r in results if r["name"] == name and "exchange" not in r]:
            draw_times(name, mine, contexts, out / f"{name}.{arguments.format}")
            drawn = True
    if mine := [r for r in results if r["name"] == "mix"]:
        draw_mixing(mine, contexts, out / f"mix.{arguments.format}")
        drawn = True
    if trained:
        draw_accuracy(trained, out / f"train_digits.{arguments.format}")
        drawn = True
    if not drawn:
        sys.exit("the files have no results of round, allreduce, mix or train_digits")


if __name__ == "__main__":
    main()
