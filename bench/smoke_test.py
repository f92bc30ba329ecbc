#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a sub-command of kith_bench on something tiny and checks its exit status, table and JSON.

usage: smoke_test.py KITH_BENCH WORK_DIR {round|exchange|machines|overlap|allreduce|mix|codec|topologies|plan|misuse|plot|mpi|mpi_misuse} [MPIEXEC]
"""

import json
import os
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True  # the source tree stays clean
import mpi_table  # noqa: E402

BENCH_DIR = pathlib.Path(__file__).resolve().parent
ARGUMENTS = {
    "round": "-b 16 -e 4K -f 16 -n 3 -w 1 --ranks 1,2,3 --topology ring,hypercube,base-graph:2,complete "
             "--dtype f32,f64,f16,bf16 --bucket-bytes 4K",
    "exchange": "-b 4K -e 4K -n 3 -w 1 --ranks 2,3 --topology ring,one-peer-exponential --dtype f32,f64,f16,bf16 "
                "--exchange full-precision,direct:int4-block,choco:int8-block,difference:min-max-uint8,"
                "masked-mean:cyclic-mask:0.1",
    "overlap": "-b 4K -e 4K -n 3 -w 1 --ranks 1,2 --topology ring --exchange full-precision,choco:int8-block "
               "--overlap auto,idle,50",
    "machines": "-b 4K -e 4K -n 5 -w 1 --ranks 7,8 --machines 3 --topology one-peer-exponential,ring --dtype f32,bf16",
    "codec": "-b 1K -e 4K -f 2 -n 3 --dtype f32,f64,f16,bf16",
    "allreduce": "-b 2 -e 4K -f 64 -n 3 --ranks 1,2,3 --dtype f32,f64,f16,bf16",
    "mix": "--ranks 4,6 --topology one-peer-exponential,ring,cycle:[ring,base-graph],hypercube --count 8 --factor 1e-2",
    "topologies": "--sizes 1,6,8,1000 --topology one-peer-exponential,ring,hypercube,hierarchical:[3,ring]",
}
ROUNDS = ("exchange", "overlap", "machines")  # are options of round
RESULT_KEYS = {"name": str, "engine": str, "ranks": int, "topology": str, "dtype": str, "bytes": (int, float),
               "time_us_p25": float, "time_us_p50": float, "time_us_p75": float, "algbw_GBps": (int, float),
               "busbw_GBps": (int, float), "wrong": (int, float)}
MORE_KEYS = {
    "round": {"limit_us_p50": float, "count": int, "iterations": int, "bytes_sent": (int, float)},
    "exchange": {"exchange": str, "encode_us_p50": float, "decode_us_p50": float, "wire_us_p50": float,
                 "full_precision_us_p50": float, "full_precision_bytes_sent": (int, float)},
    "overlap": {"exchange": str, "launch": str, "host": str, "compute_us_p50": float, "together_us_p50": float, "exposed_us": float,
                "hidden": (int, float)},
    "machines": {"machines": int, "exchange": str, "slow_bytes_sent": float, "fast_bytes_sent": float,
                 "slow_bytes_sent_by_machine": float, "limit_us_p50": float, "iterations": int},
    "codec": {"codec": str, "memcpy_us_p50": float, "encode_us_p50": float, "decode_add_us_p50": float,
              "encode_GBps": float, "relative_error": float, "wire_bytes": float, "bytes_per_element": float},
    "allreduce": {"limit_us_p50": float, "count": int, "iterations": int, "bytes_sent": (int, float)},
    "mix": {"rounds": int, "reached": bool, "messages_sent": (int, float), "curve": list},
    "topologies": {"period": int, "max_degree": int, "contraction": (int, float), "spectral_gap": (int, float),
                   "symmetric": bool},
}
CONTEXT_KEYS = {"schema_version": int, "kith_version": str, "compiler": str, "compiler_flags": str, "host": dict,
                "date": str, "command_line": str, "environment": dict}


def run(*command):
    return subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=120, check=False)


def require(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def require_keys(record, keys, what):
    for key, kind in keys.items():
        require(key in record, f"{what} has no {key}: {record}")
        require(isinstance(record[key], kind), f"{what}: {key} is {record[key]!r}")


def record_of(bench, work, name):
    """Runs a sub-command; its output and JSON."""
    file = work / f"{name}.json"
    file.unlink(missing_ok=True)
    done = run(bench, "round" if name in ROUNDS else name, *ARGUMENTS[name].split(), "--json", file)
    print(done.stdout)
    require(done.returncode == 0, f"exit status {done.returncode}")
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


def check_command(bench, work, name):
    text, record = record_of(bench, work, name)
    require_keys(record["context"], CONTEXT_KEYS, "context")
    require(record["context"]["schema_version"] == 1, "the schema is not 1")
    require("# Wrong elements: 0 OK" in text, "no footer")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    shown = [line for line in lines if " - " not in line] if name == "topologies" else lines
    require(len(shown) == len(record["results"]) > 0, f"{len(shown)} lines, {len(record['results'])} results")
    for result in record["results"]:
        require_keys(result, RESULT_KEYS | MORE_KEYS[name], "result")
        require(result["name"] == ("round" if name in ROUNDS else name) and result["wrong"] == 0, f"bad result {result}")
        require(result["time_us_p25"] <= result["time_us_p50"] <= result["time_us_p75"], f"quartiles of {result}")
    {"round": check_round, "exchange": check_exchange, "machines": check_machines, "allreduce": check_allreduce, "mix": check_mix,
     "codec": check_codec, "topologies": check_topologies}[name](record["results"])
    if name == "exchange":  # of 3 ranks each has another peer in the next round
        require(text.count("# left out: difference:min-max-uint8") == 4, "an exchange that cannot be is not left out")
        require(text.count("#   saves ") == len(record["results"]), "not one verdict for each line")


def check_round(results):
    # 1 rank: 4 topologies; 2 ranks: 4; 3 ranks: 3, for there is no hypercube. 3 sizes and 4 types each.
    require(len(results) == 11 * 12, f"{len(results)} results")
    for r in results:
        peers = {"ring": min(r["ranks"] - 1, 2), "complete": r["ranks"] - 1}.get(r["topology"])
        require(peers is None or r["bytes_sent"] == peers * r["bytes"], f"bytes sent in {r}")
        require(("by_hand_us_p50" in r) == (r["dtype"] in ("f32", "f64")), f"loop by hand in {r}")


def check_overlap(bench, work):
    text, record = record_of(bench, work, "overlap")
    require(sum(1 for line in text.splitlines() if not line.startswith("#")) == len(record["results"]) == 2 * 2 * 3,
            f"{len(record['results'])} results")
    for r in record["results"]:
        require_keys(r, MORE_KEYS["overlap"] | {"time_us_p50": float, "bytes": int, "iterations": int}, "result")
        require(r["name"] == "round" and r["launch"] == "hidden" and 0 <= r["hidden"] <= 1, f"bad result {r}")
        exposed = r["together_us_p50"] - r["compute_us_p50"]
        hidden = min(max(1 - exposed / r["time_us_p50"], 0), 1)
        require(abs(r["hidden"] - hidden) < 1e-6 and r["compute_us_p50"] > 0, f"what is hidden in {r}")


def check_exchange(results):
    # 2 ranks: 2 topologies with 4 exchanges; 3 ranks: one of them with 4, one with 3; 4 types each.
    require(len(results) == 15 * 4, f"{len(results)} results")
    for r in results:
        peers = min(r["ranks"] - 1, 2) if r["topology"] == "ring" else 1
        require(r["full_precision_bytes_sent"] == peers * r["bytes"], f"bytes of full precision in {r}")
        # What is encoded is f32, f64 for f64: 4 bytes for each 64 or 256 elements, or 8.
        wide = 8 if r["dtype"] == "f64" else 4
        expected = {"direct:int4-block": r["count"] / 2 + wide * -(-r["count"] // 64),
                    "choco:int8-block": r["count"] + wide * -(-r["count"] // 256)}.get(r["exchange"])
        require(expected is None or r["bytes_sent"] == peers * expected, f"bytes sent in {r}")
        saved = r["full_precision_bytes_sent"] - r["bytes_sent"]
        spent = r["time_us_p50"] - r["full_precision_us_p50"]
        if spent > 0 and saved > 0:
            require(abs(r["pays_below_GBps"] - saved / spent / 1e3) < 1e-6 * saved / spent, f"verdict of {r}")


def check_machines(results):
    # 2 numbers of ranks, 2 topologies, 2 types; flat, with whole models and with shards.
    require(len(results) == 2 * 2 * 2 * 3, f"{len(results)} results")
    for r in results:
        here, wide, model = 3, 4 // {"f32": 4, "bf16": 2}[r["dtype"]], r["bytes"]
        if r["topology"] == "hierarchical:[3,ring]" and r["exchange"] == "sharded":
            # Every machine tells two others a model. The last one has 1 or 2 ranks, which send it alone.
            require(r["slow_bytes_sent_by_machine"] == 2 * wide * model, f"bytes between machines in {r}")
            shard = -(-model // 4 // (r["ranks"] - 2 * here)) * 4 if wide == 1 else None
            require(shard is None or r["slow_bytes_sent"] == 2 * shard, f"bytes of a rank in {r}")
        if r["topology"] == "hierarchical:[3,ring]" and r["exchange"] == "full-precision":
            # Those of the last machine tell the 6 ranks of the others, which tell no more than 3 + 2.
            require(r["slow_bytes_sent"] == 6 * model, f"bytes of whole models in {r}")
        if r["topology"] == "ring":
            require(r["slow_bytes_sent"] <= 2 * model, f"bytes of a flat ring in {r}")


def check_codec(results):
    require(len(results) == 10 * 3 * 4, f"{len(results)} results")
    for r in results:
        family, wide = r["codec"].split(":")[0], 8 if r["dtype"] == "f64" else 4
        # Half a step of a uniform rounding: 1/127 of a block's largest value, which is about 2.8 for 256 normal ones,
        # has a root mean square of 2.8 / 127 / sqrt(12); bf16 keeps 8 bits, f16 11.
        expected = {"int8-block": 2.8 / 127 / 12 ** 0.5, "cast-bf16": 2 ** -9, "cast-f16": 2 ** -12}.get(family)
        exact = (r["dtype"], family) in [("bf16", "cast-bf16"), ("f16", "cast-f16"), ("bf16", "cast-f16")]
        if expected and not exact:
            require(expected / 2 < r["relative_error"] < expected * 1.6, f"error of {r}")
        if r["dtype"] == "f32":
            size = {"int4-block": r["count"] / 2 + wide * r["count"] / 64, "cast-f16": 2 * r["count"],
                    "top-k": round(r["count"] / 100) * 8}.get(family)
            require(size is None or r["wire_bytes"] == size, f"wire bytes of {r}")


def check_allreduce(results):
    for r in results:
        share = 2 * (r["ranks"] - 1) / r["ranks"] * r["bytes"]
        require(abs(r["bytes_sent"] - share) <= 16, f"bytes sent in {r}")


def check_mix(results):
    by_name = {(r["ranks"], r["topology"]): r for r in results}
    one_peer = by_name[4, "one-peer-exponential"]  # 2 rounds are exact among 4
    require(one_peer["rounds"] == 2 and one_peer["messages_sent"] == 2, f"{one_peer}")
    # A ring of 4 has the eigenvalue 1/3 twice and -1/3 once: 3^-t <= 1e-2 in round 5, exactly.
    ring = by_name[4, "ring"]
    require(ring["rounds"] == 5 and abs(ring["relative_distance"] - 3.0 ** -5) < 1e-12, f"{ring}")
    require((6, "hypercube") not in by_name and (4, "hypercube") in by_name, "hypercubes have 2^k ranks")


def check_topologies(results):
    by_name = {(r["ranks"], r["topology"]): r for r in results}
    require(abs(by_name[6, "ring"]["contraction"] - 2 / 3) < 1e-12, "a ring of 6 contracts by 2/3")
    require(by_name[8, "one-peer-exponential"]["exact_after"] == 3, "8 = 2^3")
    require((6, "hypercube") not in by_name, "there is no hypercube of 6")
    traffic = by_name[8, "hierarchical:[3,ring]"]  # machines of 3, 3 and 2 ranks: shards of a half and thirds
    require(traffic["machines"] == 3 and traffic["sharded_slow_models"] == 1 and not traffic["shards_match"],
            f"traffic of {traffic}")


def plan_of(bench, work, arguments):
    """What `kith_bench plan` prints, and its results."""
    file = work / "plan.json"
    file.unlink(missing_ok=True)
    done = run(bench, "plan", *arguments.split(), "--json", file)
    print(done.stdout)
    require(done.returncode == 0, f"exit status {done.returncode}: plan {arguments}")
    record = json.loads(file.read_text(encoding="utf-8"))
    require_keys(record["context"], CONTEXT_KEYS, "context")
    return done.stdout, record["results"]


def check_plan(bench, work):
    """The table and the recommendation; then the model beside what the slow-network lab has measured."""
    text, results = plan_of(bench, work, "--ranks 12 --ranks-per-machine 2 --jitter 0 --compute-ms 50 --model-bytes 100M "
                            "--topology one-peer-exponential,random-matching,ring,hypercube")
    require("# left out: hypercube" in text, "12 is no power of two")
    for r in results:
        require_keys(r, {"name": str, "ranks": int, "topology": str, "exchange": str, "launch": str, "bytes": int,
                         "predicted_round_us": float, "predicted_step_us": float, "slow_link_bytes": float,
                         "slow_link_bytes_per_card": float, "digits_per_second": float, "concessions": int}, "result")
        # No jitter and equal rounds: computing and communicating, one after the other or together.
        step = {"now": 50e3 + r["predicted_round_us"], "hidden": max(50e3, r["predicted_round_us"])}[r["launch"]]
        if r["topology"] in ("all-reduce", "hierarchical:one-peer-exponential"):
            require(abs(r["predicted_step_us"] / step - 1) < 1e-3, f"step of {r}")
    require(sum(r["recommended"] for r in results) == 1, "not one recommendation")
    # Lines: all-reduce; two topologies with 4 exchanges, one that Choco cannot serve; two among machines. Two launches.
    require(len(results) == 2 * (1 + 2 * 4 + 1 + 2), f"{len(results)} results")
    sharded = [r for r in results if r["topology"] == "hierarchical:one-peer-exponential"]
    require(all(r["slow_link_bytes_per_card"] == 100 << 20 for r in sharded), "a machine sends one model")
    text, results = plan_of(bench, work, f"--compare {BENCH_DIR / 'results' / 'network_lab.json'}")
    gossip = [r for r in results if r["gossip"] and r["measured_round_us_p50"] > 10e3]
    near = [r for r in gossip if 0.75 <= r["ratio"] <= 1.25]
    require(len(gossip) >= 12 and "Of the rounds over 10 ms" in text, f"{len(gossip)} rounds of gossip over 10 ms")
    for r in gossip:
        lossy = r["dropped_share"] > 1 / 2000  # the model knows no loss, and says so
        require(r in near or (lossy and "dropped" in r["remark"]), f"more than 25 % off: {r}")
    require(len(near) >= 0.75 * len(gossip), f"only {len(near)} of {len(gossip)} are within 25 %")


def check_misuse(bench, work):
    """A wrong value ends with status 2 and names the right ones."""
    for command, hints in {
        "round --topology rinng": ["rinng", "one-peer-exponential", "torus"],
        "round --dtype f31": ["f31", "bf16"],
        "round --engine smoke": ["thread"],
        "round --exchange int8": ["int8", "choco:int8-block"],
        "round --overlap soon": ["soon", "auto"],
        "codec --codec int7": ["int7", "int8-block:256"],
        "codec -b 2 -e 2": ["-b"],
        "round --ranks 0": ["number of ranks"],
        "round -b 1Q": ["1Q", "32M"],
        "round -b 1M -e 1K": ["1M", "1K"],
        "round -b 1K -e 1K --topology hypercube --ranks 6": ["6"],
        "mix --ranks 1": ["at least 2 ranks"],
        "topologies --topology torus:2": ["torus"],
        f"topologies --json {work}/missing/file.json": ["cannot write"],
        "plan --ranks 12 --ranks-per-machine 8": ["12 ranks do not fill machines of 8"],
        "plan --ranks 8 --ranks-per-machine 4 --cards 3": ["4 ranks", "3 network cards"],
        "plan --jitter 2": ["--jitter"],
        "plan --inter-Gbit 0": ["--inter-Gbit"],
        "plan --model-bytes 2": ["--model-bytes", "f32"],
        "plan --compare missing.json": ["missing.json"],
        f"plan --compare {BENCH_DIR / 'results' / 'mix.json'}": ["no record of the slow-network lab"],
        "": ["subcommand"],
    }.items():
        done = run(bench, *command.split())
        print(f"kith_bench {command}\n{done.stdout}")
        require(done.returncode == 2, f"exit status {done.returncode}, not 2: kith_bench {command}")
        for hint in hints:
            require(hint in done.stdout, f"no {hint!r} in what `kith_bench {command}` says")
    for command in ("--help", "round --help"):
        require(run(bench, *command.split()).returncode == 0, f"exit status of {command}")


def launcher_of(mpiexec):
    """The launcher's command. Open MPI refuses to serve root, and more ranks than cores, if it is not told."""
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return mpi_table.default_launcher(mpiexec)


def check_mpi_results(results, name):
    for r in results:
        require_keys(r, RESULT_KEYS | MORE_KEYS["round"] | {"memory": str, "shared_memory": bool}, "result")
        require(r["engine"] == "mpi" and r["ranks"] == 2 and r["wrong"] == 0, f"bad result {r}")
        require(r["shared_memory"] == ("--no-shared-memory" not in name), f"shared memory in {r}")
        real, is_round = r["dtype"] == "f32", r["name"] == "round"
        # At 2 ranks one-peer-exponential, too, always meets the same neighbour.
        for rival, there in {"mpi_allreduce": real, "by_hand": real and is_round,
                             "mpi_neighbor": real and is_round}.items():
            require((f"{rival}_us_p50" in r) == there, f"{rival} in {r}")


def check_mpi(bench, work, mpiexec):
    """Both sub-commands under mpirun: every contestant is there, and only one rank speaks; then the driver."""
    launcher = launcher_of(mpiexec)
    file = work / "mpi.json"
    # Sizes 4, 256 and 16384 B, two types; memories and topologies.
    for name, (tail, lines) in {"round": ("-b 4 -e 16K --memory own,allocated", 3 * 2 * 2 * 2),
                                "allreduce": ("-b 4 -e 16K --memory own,allocated", 3 * 2 * 2),
                                "round --no-shared-memory": ("-b 4K -e 4K --topology complete", 2)}.items():
        file.unlink(missing_ok=True)
        command = f"{launcher} -n 2 {bench} {name} --engine mpi -f 64 -n 3 -w 1 -d f32,f16 {tail} --json {file}"
        done = run(*command.split())
        print(f"{command}\n{done.stdout}")
        require(done.returncode == 0, f"exit status {done.returncode}")
        require(done.stdout.count("# Wrong elements: 0 OK") == 1, "not one footer")
        record = json.loads(file.read_text(encoding="utf-8"))
        require_keys(record["context"], CONTEXT_KEYS | {"mpi": dict}, "context")
        require(record["context"]["mpi"]["ranks"] == 2, f"{record['context']['mpi']}")
        require(len(record["results"]) == lines, f"{len(record['results'])} results, not {lines}")
        check_mpi_results(record["results"], name)
    done = run(*f"{launcher} -n 2 {bench} round --engine mpi -b 4K -e 4K -n 3 --topology ring --no-shared-memory "
               "--exchange choco:int8-block,direct:int4-block".split())
    print(done.stdout)
    require(done.returncode == 0 and done.stdout.count("#   saves ") == 2, "round --exchange under MPI")
    done = run(*f"{launcher} -n 2 {bench} round --engine mpi -b 4K -e 4K -n 3 --topology ring --overlap auto,50".split())
    print(done.stdout)
    require(done.returncode == 0 and done.stdout.count(" full-precision ") == 2, "round --overlap under MPI")
    done = run(*f"{launcher} -n 3 {bench} round --engine mpi -b 4K -e 4K -n 3 --machines 2".split())
    print(done.stdout)
    require(done.returncode == 0 and done.stdout.count(" sharded ") == 1, "round --machines under MPI")
    table = work / "table.json"
    done = run(sys.executable, BENCH_DIR / "mpi_table.py", "--bench", bench, "--mpirun", launcher, "--ranks", "1,2",
               "--out", table, "--", *"-b 4 -e 4K -f 1024 -n 3 --memory own,allocated".split())
    print(done.stdout)
    require(done.returncode == 0, f"exit status {done.returncode} of mpi_table.py")
    require(done.stdout.count("\n| 2 | 4 KiB |") == 1 and "|  |" not in done.stdout, "the table is not full")
    done = run(sys.executable, BENCH_DIR / "plot.py", "--out", work, table)
    require(done.returncode in (0, 77), f"exit status {done.returncode} of plot.py: {done.stdout}")


def check_mpi_misuse(bench, work, mpiexec):
    """What makes no sense is said once, and nothing hangs."""
    for arguments, hint in {
        "round --engine mpi --ranks 3": "--ranks says 3",
        "round --engine mpi --bogus": "--bogus",
        "round --engine=mpi -b 1Q": "1Q",
        "round --engine mpi --memory rented": "rented",
        f"round --engine mpi --json {work}/missing/file.json": "cannot write",  # rank 0 alone fails
    }.items():
        done = run(*f"{launcher_of(mpiexec)} -n 2 {bench} {arguments}".split())
        print(f"{arguments}\n{done.stdout}")
        require(done.returncode == 2, f"exit status {done.returncode}, not 2")
        said = [line for line in done.stdout.splitlines() if hint in line and not line.startswith("#")]
        require(len(said) == 1, f"{len(said)} lines with {hint!r}")


def check_plot(bench, work):
    """The pictures exist, and are pictures."""
    names = ("round", "allreduce", "mix")
    for name in names:
        record_of(bench, work, name)
    trained = BENCH_DIR / "results" / "train_digits.json"
    done = run(sys.executable, BENCH_DIR / "plot.py", "--out", work, *(work / f"{name}.json" for name in names), trained)
    print(done.stdout)
    if done.returncode == 77:
        sys.exit(77)
    require(done.returncode == 0, f"exit status {done.returncode}")
    for name in (*names, trained.stem):
        require((work / f"{name}.png").read_bytes().startswith(b"\x89PNG"), f"{name}.png is no picture")


def main():
    bench, work, name = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    work.mkdir(parents=True, exist_ok=True)
    os.environ["MPLCONFIGDIR"] = str(work)  # matplotlib's cache stays in the build tree
    if name == "misuse":
        check_misuse(bench, work)
    elif name == "plan":
        check_plan(bench, work)
    elif name == "overlap":
        check_overlap(bench, work)
    elif name == "plot":
        check_plot(bench, work)
    elif name == "mpi":
        check_mpi(bench, work, sys.argv[4])
    elif name == "mpi_misuse":
        check_mpi_misuse(bench, work, sys.argv[4])
    else:
        check_command(bench, work, name)


if __name__ == "__main__":
    main()
