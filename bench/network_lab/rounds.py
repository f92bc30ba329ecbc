# SPDX-License-Identifier: Apache-2.0
"""The contest: MPI_Allreduce, Kith's rounds, the same by hand with MPI, and plain TCP streams, against the bounds."""

import json
import sys

from nodes import MIB, Network, address, congestion_control, kith_bench, node, run, size_name

# What kith_bench measures, and as many plain TCP streams beside it: the key of its JSON, the name here and the
# topologies that it is taken from. A further topology that kith_bench knows is a line in TOPOLOGIES.
TOPOLOGIES = ["one-peer-exponential", "ring"]
EXCHANGES = [
    ("mpi_allreduce_us", "MPI_Allreduce", TOPOLOGIES[:1]),  # each topology's contest has it; once is enough
    ("time_us", "Kith", TOPOLOGIES),
    ("by_hand_us", "by hand", TOPOLOGIES),
    ("mpi_neighbor_us", "Neighbor_alltoallv", TOPOLOGIES),
]
QUARTILES = ("p25", "p50", "p75")


class Setting(Network):
    """Links to measure on, and the models to measure with."""

    def __init__(self, title, rates_mbit, delay_ms, sizes, seconds):
        super().__init__(title, rates_mbit, delay_ms)
        self.sizes = sizes
        self.seconds = seconds  # for the timed rounds of one exchange and size

    def gossip_bound_ms(self, sent_bytes):
        """Every node sends and receives so much: the slowest link at its rate, and the way of the last bit."""
        return sent_bytes * 8e-3 / min(self.rates_mbit) + self.delay_ms

    def all_reduce_bound_ms(self, model_bytes):
        """All nodes together send at least 2 (n-1) models, each node at least one; something travels once."""
        total = 2 * (self.nodes - 1) * model_bytes * 8e-3 / sum(self.rates_mbit)
        return max(total, model_bytes * 8e-3 / min(self.rates_mbit)) + self.delay_ms

    def rounds(self, size):
        """3, 6, ... 30, as they fit: among 8 nodes one-peer rounds have 3 patterns."""
        predicted_s = self.all_reduce_bound_ms(size) / 1e3
        return 3 * max(1, min(10, round(self.seconds / predicted_s / 3)))

    def warmup(self, size):
        """Every pattern once before it is timed, because MPI connects two ranks when they first meet; but not where a
        round takes seconds and a connection hardly counts."""
        return 3 if self.all_reduce_bound_ms(size) < 1e3 else 1


def settings(smoke):
    if smoke:
        return [Setting("200 Mbit/s, 2 ms", [200] * 2, 2, [MIB // 4], 0.1)]
    sizes = [4096, MIB, 25_000_000]
    return [
        Setting("100 Mbit/s, 5 ms", [100] * 8, 5, sizes, 6),
        Setting("1 Gbit/s, 1 ms", [1000] * 8, 1, sizes, 3),
        Setting("1 Gbit/s, 20 ms", [1000] * 8, 20, sizes, 4),
        Setting("100 Mbit/s, 5 ms, one node 20 Mbit/s", [100] * 7 + [20], 5, sizes[:2], 6),
    ]


def time_streams(setting, programs, topology, models):
    """Times of as many plain TCP streams as the topology has edges, each of so many models: by size of the model."""
    nodes = range(setting.nodes)
    output = run(str(programs / "tcp_streams"), "--topology", topology,
                 "--namespaces", *(f"/run/netns/{node(i)}" for i in nodes),
                 "--addresses", *(address(i) for i in nodes),
                 "--bytes", *(str(round(models * size)) for size in setting.sizes),
                 "--rounds", *(str(setting.rounds(size)) for size in setting.sizes))
    return dict(zip(setting.sizes, json.loads(output)))


def contestants(record):
    """What kith_bench has timed: exchange, topology, models that a node sends, rounds and quartiles in us."""
    for result in record["results"]:
        for key, name, topologies in EXCHANGES:
            if result["topology"] not in topologies or f"{key}_p50" not in result:
                continue
            topology, models = result["topology"], result["bytes_sent"] / result["bytes"]
            if key == "mpi_allreduce_us":
                topology, models = "all", 2 * (1 - 1 / result["ranks"])
            yield {"exchange": name, "topology": topology, "models_sent": models,
                   "rounds": result["iterations"]} | {f"time_us_{q}": result[f"{key}_{q}"] for q in QUARTILES}


def measure(setting, programs, mpirun):
    """All results of a setting, and the context of kith_bench's last record."""
    streams = {topology: time_streams(setting, programs, topology, 1) for topology in TOPOLOGIES}
    # As many bytes as any all-reduce must send, in the friendliest pattern.
    streams["all"] = time_streams(setting, programs, TOPOLOGIES[0], 2 * (1 - 1 / setting.nodes))
    results = []
    for size in setting.sizes:
        record = kith_bench(setting, programs, mpirun, "--topology", ",".join(TOPOLOGIES), "-b", size, "-e", size,
                            "-w", setting.warmup(size), "-n", setting.rounds(size))
        for one in contestants(record):
            plain = streams[one["topology"]][size]
            bound_ms = (setting.all_reduce_bound_ms(size) if one["topology"] == "all"
                        else setting.gossip_bound_ms(one["models_sent"] * size))
            results.append({"network": setting.title, "nodes": setting.nodes, "bytes": size} | one |
                           {"bound_us": 1e3 * bound_ms} |
                           {f"streams_us_{q}": plain[f"time_us_{q}"] for q in QUARTILES})
            print_result(results[-1])
    return results, record["context"]


def title_of(result):
    return result["exchange"] if result["topology"] == "all" else f"{result['exchange']} {result['topology']}"


def print_head(setting):
    print(f"\n{setting.title}: {setting.nodes} nodes, TCP congestion control {congestion_control()}")
    for line in (("", "", "time", "", "", "bound", "time", "plain TCP", "speed"),
                 ("model", "exchange", "p25", "p50", "p75", "", "/bound", "p50", "of TCP"),
                 ("", "", "(ms)", "(ms)", "(ms)", "(ms)", "", "(ms)", "(%)")):
        print_line(*line)


def print_line(size, exchange, *figures):
    widths = (9, 9, 9, 9, 7, 10, 7)
    print(f"{size:>8}  {exchange:<40}", *(f"{figure:>{width}}" for figure, width in zip(figures, widths)), flush=True)


def print_result(result):
    times = [result[f"time_us_{q}"] for q in QUARTILES]
    p50, bound, plain = times[1], result["bound_us"], result["streams_us_p50"]
    print_line(size_name(result["bytes"]), title_of(result), *(f"{us / 1e3:.2f}" for us in (*times, bound)),
               f"{p50 / bound:.2f}", f"{plain / 1e3:.2f}", f"{100 * plain / p50:.0f}")


def draw(record, path):
    """Time of a round against the size of the model, one panel per network."""
    import matplotlib  # where it is missing, the rest of the lab works

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks = list(dict.fromkeys(r["network"] for r in record["results"]))
    figure, panels = pyplot.subplots(1, len(networks), figsize=(4.6 * len(networks), 4.2), squeeze=False, sharey=True)
    for network_title, axis in zip(networks, panels.flat):
        here = [r for r in record["results"] if r["network"] == network_title]
        for i, title in enumerate(dict.fromkeys(title_of(r) for r in record["results"])):
            line = sorted((r for r in here if title_of(r) == title), key=lambda r: r["bytes"])
            sizes = [r["bytes"] for r in line]
            axis.plot(sizes, [r["time_us_p50"] / 1e3 for r in line], "o-", color=f"C{i}", markersize=3, label=title)
            axis.fill_between(sizes, [r["time_us_p25"] / 1e3 for r in line], [r["time_us_p75"] / 1e3 for r in line],
                              color=f"C{i}", alpha=0.2)
        for title, style in (("Kith one-peer-exponential", ":"), ("MPI_Allreduce", "--")):
            line = sorted((r for r in here if title_of(r) == title), key=lambda r: r["bytes"])
            axis.plot([r["bytes"] for r in line], [r["bound_us"] / 1e3 for r in line], style, color="black",
                      label=f"bound of {title}")
        axis.set(xscale="log", yscale="log", title=network_title, xlabel="model of one rank (bytes)")
        axis.grid(alpha=0.3)
    panels[0, 0].set_ylabel("time of a round (ms), median and quartiles")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    context = record["context"]
    figure.suptitle(f"{here[0]['nodes']} nodes; TCP {context['tcp_congestion_control']}; {context['mpi']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def check(results):
    """Nothing is faster than the links allow; were it so, the lab would not be the network that it says."""
    for result in results:
        if min(result["time_us_p50"], result["streams_us_p50"]) < result["bound_us"]:
            sys.exit(f"lab.py: faster than the links allow: {result}")
