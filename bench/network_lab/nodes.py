# SPDX-License-Identifier: Apache-2.0
"""The nodes of the lab: network namespaces of this machine that slow links connect.

Everything happens inside namespaces of its own: processes, mounts, network, host names. Nothing is visible outside, two
labs do not meet, and when the first process inside ends, by whatever signal, the kernel ends all others and takes the
networks with them.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

MIB = 1 << 20
MTU = 1500
RUN = pathlib.Path("/run/kith_lab")  # in the lab's own /run
INSIDE = "KITH_NETWORK_LAB_INSIDE"  # set in the environment of the process inside
BUFFERS = "4096 131072 33554432"  # tcp_rmem and tcp_wmem: a window of 32 MB fills every link here
SKIPPED = 77


class Network:
    """Nodes on a switch: the rates of their links in Mbit/s, the delay between any two in ms, one way, and how long a
    frame may wait for a link: long enough for TCP (BBR) to find the rate of a link without losing any."""

    def __init__(self, title, rates_mbit, delay_ms):
        self.title = title
        self.rates_mbit = rates_mbit
        self.delay_ms = delay_ms
        self.queue_ms = max(50, 10 * delay_ms)

    @property
    def nodes(self):
        return len(self.rates_mbit)


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
def connect(network, programs):
    """The nodes of a network, each a network namespace and a host name, on a switch. Yields a dictionary that holds
    the switch's counters afterwards."""
    counters = {}
    nodes = range(network.nodes)
    rates = [str(rate) for rate in network.rates_mbit]
    # It must run when a frame is due, whatever the ranks do.
    switch = subprocess.Popen(["chrt", "--fifo", "10", programs / "delay_switch", "--prefix", "lab", "--ports",
                               str(network.nodes), "--delay", str(network.delay_ms), "--queue", str(network.queue_ms),
                               "--rate", *rates], stdout=subprocess.PIPE, text=True)
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


def congestion_control():
    return run(*on_node(node(0)), "cat", "/proc/sys/net/ipv4/tcp_congestion_control").strip()


def kith_bench(network, programs, mpirun, *options):
    """The record of kith_bench with these options, one rank on each node. `mpirun`: the command and its options."""
    subnet = "10.78.0.0/24"
    file = RUN / "kith_bench.json"
    run(*on_node(node(0)), *mpirun, "-n", network.nodes, "-H", ",".join(node(i) for i in range(network.nodes)),
        "--bind-to", "none", "--mca", "plm_rsh_agent", RUN / "agent", "--mca", "oob_tcp_if_include", subnet,
        "--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", subnet,
        # Many ranks share few cores: one that polls without yielding keeps the others from their data.
        "--mca", "mpi_yield_when_idle", 1,
        programs / "kith_bench", "round", "--engine", "mpi", "--no-shared-memory", *options, "--json", file,
        env={**os.environ, "TMPDIR": str(RUN), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
    record = json.loads(file.read_text(encoding="utf-8"))
    for result in record["results"]:
        if result.get("wrong", 0) != 0:
            sys.exit(f"lab.py: wrong elements: {result}")
    return record


def size_name(size):
    for unit, name in ((MIB, "MiB"), (1024, "KiB"), (1_000_000, "MB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
