# SPDX-License-Identifier: Apache-2.0
"""Hidden rounds between two nodes: how much of a round passes behind what the host does meanwhile."""

from nodes import MIB, Network, congestion_control, kith_bench, size_name

EXCHANGES = ["full-precision", "choco:int8-block"]


class Setting(Network):
    """A link, the models, and how many rounds of each are timed."""

    def __init__(self, title, rate_mbit, delay_ms, sizes, rounds):
        super().__init__(title, [rate_mbit] * 2, delay_ms)
        self.sizes = sizes
        self.rounds = rounds


def settings(smoke):
    if smoke:
        return [Setting("200 Mbit/s, 2 ms", 200, 2, [MIB // 4], 3)]
    return [
        Setting("1 Gbit/s, 1 ms", 1000, 1, [MIB, 25_000_000], 12),
        Setting("100 Mbit/s, 5 ms", 100, 5, [MIB], 12),
    ]


def measure(setting, programs, mpirun):
    """All results of a setting, and the context of kith_bench's last record."""
    results = []
    for size in setting.sizes:
        record = kith_bench(setting, programs, mpirun, "--overlap", "auto,idle", "--exchange", ",".join(EXCHANGES),
                            "--topology", "one-peer-exponential", "-b", size, "-e", size, "-w", 3, "-n", setting.rounds)
        for result in record["results"]:
            results.append({"network": setting.title, "nodes": setting.nodes} | result)
            print_result(results[-1])
    return results, record["context"]


def print_head(setting):
    print(f"\n{setting.title}: {setting.nodes} nodes, TCP congestion control {congestion_control()}")
    for line in (("", "", "", "round", "host", "together", "hidden"),
                 ("model", "exchange", "the host", "(ms)", "(rounds)", "(ms)", "(%)")):
        print_line(*line)


def print_line(size, exchange, host, *figures):
    print(f"{size:>8}  {exchange:<20} {host:<9}", *(f"{figure:>9}" for figure in figures), flush=True)


def print_result(result):
    times = {name: result[f"{name}_us_p50"] for name in ("time", "compute", "together")}
    print_line(size_name(result["bytes"]), result["exchange"], result["host"], f"{times['time'] / 1e3:.2f}",
               f"{times['compute'] / times['time']:.2f}", f"{times['together'] / 1e3:.2f}",
               f"{100 * result['hidden']:.0f}")


def check(results):
    """Nothing is hidden from the clock: together it takes at least as long as the host alone, but for its timer. The few
    rounds of a smoke run say nothing of time."""
    for result in results:
        if result["iterations"] >= 10 and result["together_us_p50"] < 0.9 * result["compute_us_p50"]:
            raise SystemExit(f"lab.py: a round that makes the host faster: {result}")
