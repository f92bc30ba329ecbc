#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The slow-network lab: MPI_Allreduce, Kith's rounds and plain TCP streams between nodes that slow links connect.

usage: lab.py --programs DIR [--json FILE] [--picture FILE.png] [--smoke]

README.md beside this file says what is measured, what the bounds are and what to expect. Needs root, /dev/net/tun and
Open MPI; exits with 77 and the line "skipped: why" where it cannot run.

Everything happens inside namespaces of its own: processes, mounts, network, host names. Nothing is visible outside, two
labs do not meet, and when the first process inside ends, by whatever signal, the kernel ends all others and takes the
networks with them.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys

SCHEMA_VERSION = 1
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
MIB = 1 << 20
MTU = 1500
RUN = pathlib.Path("/run/kith_lab")  # in the lab's own /run
INSIDE = "KITH_NETWORK_LAB_INSIDE"  # set in the environment of the process inside
BUFFERS = "4096 131072 33554432"  # tcp_rmem and tcp_wmem: a window of 32 MB fills every link here
SKIPPED = 77


class Setting:
    """Links to measure on, and the models to measure with."""

    def __init__(self, title, nodes, rates_mbit, delay_ms, sizes, seconds):
        self.title = title
        self.nodes = nodes
        self.rates_mbit = rates_mbit if isinstance(rates_mbit, list) else [rates_mbit] * nodes
        self.delay_ms = delay_ms
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
        """3, 6 or 9, as they fit: among 8 nodes one-peer rounds have 3 patterns."""
        predicted_s = self.all_reduce_bound_ms(size) / 1e3
        return 3 * max(1, min(3, round(self.seconds / predicted_s / 3)))

    def warmup(self, size):
        """Every pattern once before it is timed, because MPI connects two ranks when they first meet; but not where a
        round takes seconds and a connection hardly counts."""
        return 3 if self.all_reduce_bound_ms(size) < 1e3 else 1


def settings(smoke):
    if smoke:
        return [Setting("200 Mbit/s, 2 ms", 2, 200, 2, [MIB // 4], 0.1)]
    sizes = [4096, MIB, 25_000_000]
    return [
        Setting("100 Mbit/s, 5 ms", 8, 100, 5, sizes, 6),
        Setting("1 Gbit/s, 1 ms", 8, 1000, 1, sizes, 3),
        Setting("1 Gbit/s, 20 ms", 8, 1000, 20, sizes, 4),
        Setting("100 Mbit/s, 5 ms, one node 20 Mbit/s", 8, [100] * 7 + [20], 5, sizes[:2], 6),
    ]


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


# --- Into namespaces of our own --------------------------------------------------------------------------------------


def reenter():
    """Runs this command line inside, and ends it when this process is told to end; the exit status.

    Should this process be killed, the kernel sends SIGKILL to `unshare` (setpriv), that one's end kills the first
    process inside (--kill-child), and that one's end all others (--pid).
    """
    isolate = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child=KILL", "--pid", "--mount-proc",
               "--mount", "--net", "--uts"]
    for program in ("setpriv", "unshare", "nsenter", "ip", "hostname"):
        if shutil.which(program) is None:
            skip(f"{program} is not installed")
    probe = subprocess.run([*isolate, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, text=True,
                           check=False)
    if probe.returncode != 0:
        skip("namespaces are not allowed here: " + " ".join(probe.stderr.split()))
    sys.stdout.flush()

    def end(number, _frame):
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # In a session of its own: Ctrl-C is for this process, which then ends everything at once.
    inside = subprocess.Popen([*isolate, sys.executable, *sys.argv], env={**os.environ, INSIDE: "1"},
                              start_new_session=True)
    try:
        return inside.wait()
    finally:
        inside.kill()
        inside.wait()


def prepare():
    """The lab's own /run, and in it what mpirun needs to reach a node: a command, and the nodes' names."""
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    RUN.mkdir()
    agent = RUN / "agent"  # called as ssh would be: options, host, command
    agent.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nnode=$1\nshift\n'
                     f'exec {" ".join(on_node("$node"))} sh -c "$*"\n', encoding="utf-8")
    agent.chmod(0o755)
    hosts = RUN / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address(i)} {node(i)}\n" for i in range(255)),
                     encoding="utf-8")
    run("mount", "--bind", str(hosts), "/etc/hosts")


def run(*command, **options):
    """Runs a command; its output. A failure ends the lab with what the command said."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, **options)
    if done.returncode != 0:
        sys.exit(f"lab.py: exit status {done.returncode}: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


# --- The network -----------------------------------------------------------------------------------------------------


def node(i):
    return f"node{i}"


def address(i):
    return f"10.78.0.{i + 1}"


def on_node(name):
    """The beginning of a command that runs on a node."""
    return ["nsenter", f"--net=/run/netns/{name}", f"--uts={RUN}/{name}.uts"]


@contextlib.contextmanager
def network(setting, programs):
    """The nodes of a setting, each a network namespace and a host name, on a switch. Yields a dictionary that holds
    the switch's counters afterwards."""
    counters = {}
    nodes = range(setting.nodes)
    rates = [str(rate) for rate in setting.rates_mbit]
    # It must run when a frame is due, whatever the ranks do.
    switch = subprocess.Popen(["chrt", "--fifo", "10", programs / "delay_switch", "--prefix", "lab", "--ports",
                               str(setting.nodes), "--delay", str(setting.delay_ms), "--rate", *rates],
                              stdout=subprocess.PIPE, text=True)
    try:
        first = switch.stdout.readline().strip()
        if first != "ready":
            skip(first.removeprefix("skipped: ")) if switch.wait() == SKIPPED else sys.exit("lab.py: no switch")
        for i in nodes:
            add_node(i, nodes)
        yield counters
        switch.terminate()
        counters |= json.loads(switch.communicate(timeout=10)[0])
    finally:
        switch.kill()
        switch.wait()
        for i in nodes:
            subprocess.run(["ip", "netns", "del", node(i)], capture_output=True, check=False)
            subprocess.run(["umount", RUN / f"{node(i)}.uts"], capture_output=True, check=False)


def add_node(i, nodes):
    """A namespace with the switch's port i, an address, and the addresses of all others: no ARP is needed."""
    name, device = node(i), f"lab{i}"
    run("ip", "netns", "add", name)
    run("ip", "link", "set", device, "netns", name)
    lines = [f"link set {device} address {mac(i)} mtu {MTU}", f"address add {address(i)}/24 dev {device}",
             "link set lo up", f"link set {device} up"]
    lines += [f"neighbour replace {address(j)} lladdr {mac(j)} dev {device}" for j in nodes if j != i]
    run("ip", "-n", name, "-batch", "-", input="\n".join(lines))
    uts = RUN / f"{name}.uts"
    uts.touch()
    run("unshare", f"--uts={uts}", "hostname", name)
    for parameter in ("tcp_rmem", "tcp_wmem"):
        run(*on_node(name), "sh", "-c", f"echo {BUFFERS} > /proc/sys/net/ipv4/{parameter}")


def mac(i):
    return f"02:00:00:00:00:{i:02x}"


# --- What is measured ------------------------------------------------------------------------------------------------


def time_streams(setting, programs, topology, models):
    """Times of as many plain TCP streams as the topology has edges, each of so many models: by size of the model."""
    nodes = range(setting.nodes)
    output = run(str(programs / "tcp_streams"), "--topology", topology,
                 "--namespaces", *(f"/run/netns/{node(i)}" for i in nodes),
                 "--addresses", *(address(i) for i in nodes),
                 "--bytes", *(str(round(models * size)) for size in setting.sizes),
                 "--rounds", *(str(setting.rounds(size)) for size in setting.sizes))
    return dict(zip(setting.sizes, json.loads(output)))


def time_mpi(setting, programs, mpirun, size):
    """The record of kith_bench for models of a size, one rank on each node. `mpirun`: the command and its options."""
    subnet = "10.78.0.0/24"
    file = RUN / "kith_bench.json"
    run(*on_node(node(0)), *mpirun, "-n", str(setting.nodes), "-H", ",".join(node(i) for i in range(setting.nodes)),
        "--bind-to", "none", "--mca", "plm_rsh_agent", str(RUN / "agent"), "--mca", "oob_tcp_if_include", subnet,
        "--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", subnet,
        # Many ranks share few cores: one that polls without yielding keeps the others from their data.
        "--mca", "mpi_yield_when_idle", "1",
        programs / "kith_bench", "round", "--engine", "mpi", "--no-shared-memory",
        "--topology", ",".join(TOPOLOGIES), "-b", str(size), "-e", str(size),
        "-w", str(setting.warmup(size)), "-n", str(setting.rounds(size)), "--json", str(file),
        env={**os.environ, "TMPDIR": str(RUN), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
    return json.loads(file.read_text(encoding="utf-8"))


def contestants(record):
    """What kith_bench has timed: exchange, topology, models that a node sends, rounds and quartiles in us."""
    for result in record["results"]:
        if result["wrong"] != 0:
            sys.exit(f"lab.py: wrong elements: {result}")
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
        record = time_mpi(setting, programs, mpirun, size)
        for one in contestants(record):
            plain = streams[one["topology"]][size]
            bound_ms = (setting.all_reduce_bound_ms(size) if one["topology"] == "all"
                        else setting.gossip_bound_ms(one["models_sent"] * size))
            results.append({"network": setting.title, "nodes": setting.nodes, "bytes": size} | one |
                           {"bound_us": 1e3 * bound_ms} |
                           {f"streams_us_{q}": plain[f"time_us_{q}"] for q in QUARTILES})
            print_result(results[-1])
    return results, record["context"]


def size_name(size):
    for unit, name in ((MIB, "MiB"), (1024, "KiB"), (1_000_000, "MB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


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


def congestion_control():
    return run(*on_node(node(0)), "cat", "/proc/sys/net/ipv4/tcp_congestion_control").strip()


# --- What is shown and kept ------------------------------------------------------------------------------------------


def context_of(mpi_context, begun, load_at_start):
    return {
        "schema_version": SCHEMA_VERSION,
        "kith_version": mpi_context["kith_version"],
        "mpi": mpi_context["mpi"]["library"],
        "host": mpi_context["host"],
        "kernel": platform.release(),
        "tcp_rmem": BUFFERS,
        "tcp_wmem": BUFFERS,
        "mtu": MTU,
        "date": begun,
        "load_at_start": load_at_start,
        "load_at_end": os.getloadavg()[0],
    }


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, metavar="DIR",
                        help="folder of kith_bench, delay_switch and tcp_streams")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write context and results to this file")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE",
                        help="also draw time against size, as PNG or SVG")
    parser.add_argument("--mca", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a further parameter for Open MPI, for all that is measured")
    parser.add_argument("--smoke", action="store_true", help="two nodes, a second or two: that the lab works")
    arguments = parser.parse_args()
    mpirun = shutil.which("mpirun.openmpi") or shutil.which("mpirun")
    if mpirun is None or "open-mpi" not in run(mpirun, "--version"):
        skip("Open MPI is not installed")
    for file in (arguments.json, arguments.picture):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"there is no folder for {file}")
    if INSIDE not in os.environ:
        sys.exit(reenter())
    prepare()
    command = [mpirun, *(word for name, value in arguments.mca for word in ("--mca", name, value))]
    begun = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    load_at_start = os.getloadavg()[0]
    record = {"context": {}, "results": [], "switches": []}
    for setting in settings(arguments.smoke):
        with network(setting, arguments.programs) as counters:
            print_head(setting)
            control = congestion_control()
            results, mpi_context = measure(setting, arguments.programs, command)
        record["results"] += results
        record["switches"].append({"network": setting.title} | counters)
        print(f"the switch delivered {counters['frames']} frames, {counters['late_us_mean']:.0f} us late on average, "
              f"{counters['late_us_max']:.0f} us at most, and dropped {counters['dropped']}", flush=True)
    record["context"] = context_of(mpi_context, begun, load_at_start) | {
        "tcp_congestion_control": control, "mca": dict(arguments.mca)}
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(record, arguments.picture)
    check(record["results"])


if __name__ == "__main__":
    main()
