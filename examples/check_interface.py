#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks how train_digits behaves on a command line: its options, its errors, its JSON, and that it is reproducible.

usage: check_interface.py PROGRAM            with threads as ranks
       check_interface.py PROGRAM MPIRUN     with processes that MPIRUN starts as ranks
"""

import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

FAST = ["--steps", "30"]
KEYS = {"name", "merged_accuracy", "worst_accuracy", "final_loss", "consensus_distance", "messages_sent", "bytes_sent",
        "bytes_to_target", "seconds_per_step", "seconds_communicating", "curve"}
PARAMETERS = 64 * 64 + 64 + 64 * 10 + 10  # of the default model, 4 bytes each


def but_times(results):
    """The results without what differs from run to run."""
    return [{key: value for key, value in result.items() if "seconds" not in key} for result in results]


class InEmptyFolder(unittest.TestCase):
    """Everything runs in an empty folder: the program must find its data from anywhere."""

    program = ""
    mpirun = ""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_it(self, *options, launcher=()):
        return subprocess.run([*launcher, self.program, *options], cwd=self.folder, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=120, check=False)

    def results(self, *options, launcher=()):
        done = self.run_it(*options, "--json", "results.json", launcher=launcher)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))


class Threads(InEmptyFolder):
    """Options, errors and results, where nothing but the program itself is needed."""

    def refused(self, *options):
        """What the program says when it refuses options: briefly, with status 2 and nothing on stdout."""
        done = self.run_it(*FAST, *options)
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertLessEqual(len(done.stderr.splitlines()), 2)
        return done.stderr

    def test_help_names_the_options(self):
        done = self.run_it("--help")
        self.assertEqual(done.returncode, 0)
        for option in ["engine", "ranks", "machines", "topology", "exchange", "launch", "every", "global-every",
                       "steps", "split", "seed", "step-ms", "jitter", "stall", "json", "data", "help"]:
            self.assertIn(f"--{option}", done.stdout)

    def test_every_topology_of_the_help_works(self):
        listed = self.run_it("--help").stdout.split("Topologies:")[1].split("Exchanges:")[0].split("\n")
        names = [line.split()[0] for line in listed if line.strip()]
        self.assertGreaterEqual(len(names), 15)
        names = [name for name in names if "[" not in name]
        for name in [*names, "base-graph:2", "torus:4x2", "random-matching:7", "cycle:[ring,base-graph:2]"]:
            done = self.run_it("--ranks", "8", "--steps", "2", "--topology", name)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(name, done.stdout)

    def test_every_exchange_of_the_help_works(self):
        listed = self.run_it("--help").stdout.split("Exchanges:")[1].split()
        self.assertGreaterEqual(len(listed), 10)
        listed.remove("sharded")  # needs machines, see below
        results = self.results("--ranks", "4", "--steps", "20", "--topology", "ring", "--exchange", ",".join(listed))
        self.assertEqual([result["name"] for result in results["results"]],
                         ["kith", *listed[1:], "all_reduce", "isolated"])
        self.assertEqual(results["context"]["options"]["exchange"], ",".join(listed))

    def test_wrong_values_name_the_right_ones(self):
        self.assertRegex(self.refused("--topology", "rign"), "one-peer-exponential.*ring.*torus")
        self.assertRegex(self.refused("--exchange", "full-precision,choco"), '"choco" is not.*choco:int8-block')
        self.assertRegex(self.refused("--split", "label"), "iid.*by-label")
        self.assertRegex(self.refused("--engine", "tread"), "thread.*mpi")
        self.assertRegex(self.refused("--ranks", "0"), "1 to 1000")
        self.assertRegex(self.refused("--steps", "many"), "--steps")
        self.assertRegex(self.refused("--nonsense"), "--nonsense")
        self.assertRegex(self.refused("--every", "0"), "--every.*1 to")
        self.assertRegex(self.refused("--global-every", "-1"), "--global-every")
        self.assertRegex(self.refused("--launch", "now,later"), '"later" is not a launch; there are now, hidden')
        self.assertRegex(self.refused("--jitter", "-0.1"), "--jitter.*0 to")
        self.assertRegex(self.refused("--step-ms", "0"), "--step-ms.*0\\.1")
        for stall in ["", "3", "3:", ":5", "3:0", "3:5:1", "3:-5", "3:5 ", "x:5", "3.5:5", "3:1000000"]:
            self.assertRegex(self.refused("--stall", stall), "--stall.*RANK:STEPS, as in 3:5")
        self.assertRegex(self.refused("--stall", "8:5"), "--stall: there is no rank 8: ranks are 0 to 7")
        self.assertRegex(self.refused("--stall=-1:5"), "no rank -1")

    def test_a_topology_that_does_not_exist_for_a_size(self):
        self.assertRegex(self.refused("--topology", "hypercube", "--ranks", "6"), "hypercube.*4 or 8.*not 6")
        self.assertRegex(self.refused("--topology", "torus:3x3"), "torus.*8")

    def test_an_exchange_that_cannot_serve_a_topology(self):
        done = self.run_it(*FAST, "--exchange", "difference:min-max-uint8")
        self.assertEqual(done.returncode, 2)
        self.assertIn("one-peer-exponential has others in other rounds", done.stderr)

    def test_a_missing_data_file(self):
        message = self.refused("--data", "nowhere.csv")
        self.assertIn("nowhere.csv", message)
        self.assertIn("--data FILE", message)

    def test_a_damaged_data_file(self):
        rows = ["0," * 64 + "7"] * 9
        for damaged in ["0," * 64 + "10", "0," * 63 + "7", "17," + "0," * 63 + "7", "0," * 64 + "7,", ""]:
            (self.folder / "damaged.csv").write_text("\n".join([*rows, damaged, ""]), encoding="utf-8")
            self.assertIn("damaged.csv:10: expected 64 grey values", self.refused("--data", "damaged.csv"))

    def test_json(self):
        written = self.results(*FAST, "--seed", "3", "--topology", "torus")
        self.assertEqual(written["context"]["seed"], 3)
        self.assertIn("kith", written["context"]["versions"])
        options = written["context"]["options"]
        self.assertEqual((options["ranks"], options["topology"], options["steps"], options["split"], options["engine"]),
                         (8, "torus", 30, "iid", "thread"))
        self.assertEqual([result["name"] for result in written["results"]], ["kith", "all_reduce", "isolated"])
        for result in written["results"]:
            self.assertLessEqual(KEYS, set(result))

    def test_evaluation_and_merge_are_not_counted(self):
        gossip, all_reduce, isolated = self.results(*FAST)["results"]
        self.assertEqual((gossip["messages_sent"], gossip["bytes_sent"]), (30, 30 * 4 * PARAMETERS))
        self.assertEqual(all_reduce["messages_sent"], 14 * gossip["messages_sent"])
        self.assertEqual(4 * all_reduce["bytes_sent"], 7 * gossip["bytes_sent"])
        self.assertEqual((isolated["messages_sent"], isolated["bytes_sent"]), (0, 0))

    def test_the_schedule_says_what_is_sent(self):
        # Of 30 steps 15 average; 5 of those are exact means, in 14 messages and 14/8 models, the others one-peer rounds.
        written = self.results(*FAST, "--every", "2", "--global-every", "3")
        options = written["context"]["options"]
        self.assertEqual((options["every"], options["global_every"]), (2, 3))
        gossip, all_reduce, _ = written["results"]
        self.assertEqual((gossip["messages_sent"], gossip["bytes_sent"]), (10 + 5 * 14, (80 + 5 * 14) * PARAMETERS // 2))
        self.assertEqual(all_reduce["messages_sent"], 30 * 14)

    def test_schedules_that_are_the_same(self):

        def trained(*options):
            return [{**result, "name": ""} for result in but_times(self.results(*FAST, *options)["results"])]

        gossip, all_reduce, _ = trained("--global-every", "1")
        self.assertEqual(gossip, all_reduce)
        local_sgd = trained("--topology", "isolated", "--global-every", "4")[0]
        self.assertEqual(local_sgd, trained("--every", "4", "--global-every", "1")[0])

    def test_machines(self):
        written = self.results(*FAST, "--machines", "2", "--exchange", "full-precision,sharded")
        options = written["context"]["options"]
        self.assertEqual((options["machines"], options["topology"]), (2, "hierarchical:[4,one-peer-exponential]"))
        flat, sharded, _, _ = written["results"]
        # A model to each of 7 others; or 3/4 of one within the machine, twice, and 1/4 to the other machine.
        self.assertEqual(flat["bytes_sent"], 30 * 7 * 4 * PARAMETERS)
        self.assertAlmostEqual(sharded["bytes_sent"], 30 * 7 * PARAMETERS, delta=30 * 16)  # shards are whole elements
        self.assertAlmostEqual(sharded["final_loss"], flat["final_loss"], delta=1e-4)
        for result in flat, sharded:  # one peer of two machines, and all of a machine: everybody
            self.assertLess(result["consensus_distance"], 1e-5)
        self.assertRegex(self.refused("--machines", "5"), "--machines: 8 ranks do not fill 5 machines: 2 on each fill 4")
        self.assertRegex(self.refused("--machines", "9"), "do not fill 9 machines")

    def test_hidden_rounds(self):
        some = ["--steps", "100", "--every", "2"]  # more than there are evaluations, before which no round stays under way
        written = self.results(*some, "--launch", "now,hidden")
        self.assertEqual(written["context"]["options"]["launch"], "now,hidden")
        results = {result["name"]: result for result in but_times(written["results"])}
        self.assertEqual(list(results), ["kith", "kith hidden", "all_reduce", "isolated"])
        now = but_times(self.results(*some)["results"])[0]
        self.assertEqual(results["kith"], now)
        hidden = results["kith hidden"]  # as many rounds, and a step later
        self.assertEqual((hidden["messages_sent"], hidden["bytes_sent"]), (now["messages_sent"], now["bytes_sent"]))
        self.assertNotEqual(hidden["final_loss"], now["final_loss"])
        self.assertLess(hidden["consensus_distance"], results["isolated"]["consensus_distance"] / 2)

    def test_pace(self):
        options = ["--ranks", "3", "--steps", "6"]
        written = self.results(*options, "--step-ms", "1", "--jitter", "0.5", "--stall", "2:100")
        pace = written["pace"]
        self.assertEqual((pace["step_seconds"], pace["jitter"], pace["stall"]), (0.001, 0.5, {"rank": 2, "steps": 100}))
        self.assertEqual([each["name"] for each in pace["results"]], ["kith", "all_reduce", "isolated"])
        for each in pace["results"]:  # steps take what they are told to, at least
            self.assertGreaterEqual(each["seconds_per_step"], 0.001)
            self.assertGreater(each["seconds_per_step_with_jitter"], 0.001)
            delay = 100 / 3 if each["name"] == "isolated" else 100  # of the mean worker: where there is waiting, all wait
            self.assertGreaterEqual(each["seconds_per_step_with_stall"], 0.001 * (6 + delay) / 6)
            self.assertIsInstance(each["delay_by_stall_steps"], float)
        without = self.results(*options)  # which learns the same
        self.assertNotIn("pace", without)
        self.assertEqual(but_times(written["results"]), but_times(without["results"]))
        calm = self.results(*options, "--step-ms", "0.1")["pace"]
        self.assertEqual((calm["jitter"], calm["stall"]), (0, None))
        self.assertIsNone(calm["results"][0]["seconds_per_step_with_jitter"])
        text = self.run_it(*options, "--stall", "2:1").stdout
        self.assertRegex(text, "(?s)steps that take 5 ms.*worker 2 stalls 1 steps.*all_reduce.*slow for good")

    def test_bytes_are_those_of_the_codecs_formats(self):
        # int8: a byte each, and 4 for every 256; int4: half of one, and 4 for every 64; 1 % of indices and values.
        sent = {"direct:int8-block": PARAMETERS + 4 * -(-PARAMETERS // 256),
                "choco:int8-block": PARAMETERS + 4 * -(-PARAMETERS // 256),
                "choco:int4-block": PARAMETERS // 2 + 4 * -(-PARAMETERS // 64),
                "choco:cast-bf16": 2 * PARAMETERS, "choco:top-k:0.01": round(0.01 * PARAMETERS) * 8}
        results = self.results(*FAST, "--exchange", ",".join(sent))["results"]
        for result, (name, bytes_each) in zip(results, sent.items()):
            self.assertEqual((result["name"], result["bytes_sent"]), (name, 30 * bytes_each))

    def test_bytes_to_the_target_are_those_of_the_curve(self):
        gossip, all_reduce, isolated = self.results("--steps", "300")["results"]
        for result in gossip, all_reduce:
            self.assertEqual(result["bytes_to_target"],
                             next(at["bytes_sent"] for at in result["curve"] if at["accuracy"] >= 0.95))
            self.assertEqual(result["curve"][-1]["bytes_sent"], result["bytes_sent"])
        self.assertIsNone(isolated["bytes_to_target"])

    def test_one_worker_has_nobody_to_talk_to(self):
        losses = set()
        for result in self.results(*FAST, "--ranks", "1")["results"]:
            losses.add(result["final_loss"])
            self.assertEqual((result["messages_sent"], result["consensus_distance"]), (0, 0))
        self.assertEqual(len(losses), 1)

    def test_the_same_seed_gives_the_same_bits(self):

        def trained(seed):
            return but_times(
                self.results("--steps", "100", "--ranks", "5", "--split", "by-label", "--seed", seed)["results"])

        self.assertEqual(trained("1"), trained("1"))
        self.assertNotEqual(trained("1"), trained("2"))

    def test_lines_and_a_bar_for_a_terminal(self):
        lines = self.run_it(*FAST).stdout
        self.assertRegex(lines, r"(?m)^kith +step +30/30  loss [0-9.]+  accuracy")
        self.assertNotIn("\r", lines)
        self.assertRegex(lines, "(?s)test accuracy.*all_reduce.*isolated")
        terminal, its_end = pty.openpty()
        with subprocess.Popen([self.program, *FAST], stdout=its_end, cwd=self.folder) as running:
            os.close(its_end)
            seen = b""
            with contextlib.suppress(OSError):  # the end of a terminal is an error
                while data := os.read(terminal, 4096):
                    seen += data
        os.close(terminal)
        self.assertEqual(running.returncode, 0)
        bar = seen.decode()
        self.assertIn("[####################]   30/30", bar)
        widest = max(len(re.sub("\x1b\\[K", "", part)) for part in re.split("[\r\n]", bar) if part.startswith("kith"))
        self.assertLessEqual(widest, 80)


class Mpi(InEmptyFolder):
    """--engine mpi: what a launcher adds."""

    def launcher(self, ranks):
        return [self.mpirun, "-n", str(ranks)]

    def under_mpirun(self, ranks, *options):
        return self.run_it("--engine", "mpi", *options, launcher=self.launcher(ranks))

    def test_the_same_bits_as_with_threads(self):
        for ranks, options in [(4, []), (5, ["--split", "by-label", "--topology", "ring", "--launch", "now,hidden"]),
                               (4, ["--exchange", "choco:int4-block,direct:int8-block", "--every", "2",
                                    "--global-every", "3"]),
                               (3, ["--topology", "ring", "--exchange", "difference:min-max-uint8,choco:top-k:0.01"])]:
            options = ["--steps", "60", "--seed", "3", *options]
            threads = self.results("--ranks", str(ranks), *options)
            processes = self.results("--engine", "mpi", *options, launcher=self.launcher(ranks))
            self.assertEqual(but_times(threads["results"]), but_times(processes["results"]))
            self.assertEqual(processes["context"]["options"].pop("engine"), "mpi")
            self.assertEqual(threads["context"]["options"].pop("engine"), "thread")
            self.assertEqual(threads["context"], processes["context"])

    def test_one_rank_prints(self):
        done = self.under_mpirun(3, *FAST, "--ranks", "3", "--step-ms", "0.5", "--jitter", "0.5", "--stall", "0:2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout.count("3 workers (mpi)"), 1)
        self.assertEqual(len(re.findall("(?m)^kith +step +30/30 ", done.stdout)), 1)
        self.assertEqual(done.stdout.count("worker 0 stalls 2 steps"), 1)
        self.assertNotIn("\x1b", done.stdout)

    def test_help_is_printed_once(self):
        done = self.under_mpirun(3, "--help")
        self.assertEqual((done.returncode, done.stdout.count("--topology NAME")), (0, 1))

    def refused(self, *options):
        """What the program says when it refuses options: once, though mpirun adds what it has to say."""
        done = self.under_mpirun(3, *FAST, *options)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout, "")
        return done.stderr

    def test_errors_are_printed_once(self):
        for options, says in [(["--ranks", "4"], "--ranks 4: mpirun starts the ranks, and the number of them is 3"),
                              (["--nonsense"], "--nonsense"), (["--steps", "many"], "--steps: "),
                              (["--topology", "hypercube"], "not 3"), (["--data", "nowhere.csv"], "file nowhere.csv"),
                              (["--stall", "3:5"], "there is no rank 3: ranks are 0 to 2")]:
            self.assertEqual(self.refused(*options).count(says), 1, says)

    def test_without_mpirun_it_is_one_rank(self):
        results = self.results(*FAST, "--engine=mpi")
        self.assertEqual(results["context"]["options"]["ranks"], 1)
        self.assertEqual(self.run_it(*FAST, "--engine=mpi", "--ranks", "2").returncode, 2)

    def test_an_exchange_that_cannot_serve_a_topology(self):
        done = self.under_mpirun(3, *FAST, "--exchange", "difference:min-max-uint8")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count("one-peer-exponential has others in other rounds"), 1)

    def test_interrupt_ends_all_ranks(self):
        for wait_for_training in [False, True]:
            command = [*self.launcher(4), self.program, "--engine", "mpi", "--steps", "1000000"]
            with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True) as running:
                self.addCleanup(running.kill)
                said = running.stdout.readline()
                ranks = self.ranks_of(running.pid)
                self.assertEqual(len(ranks), 4)
                if wait_for_training:
                    time.sleep(0.5)
                running.send_signal(signal.SIGINT)
                said += running.communicate(timeout=30)[0]
            self.assertNotEqual(running.returncode, 0)
            self.assertIn("4 workers", said)
            self.assertNotRegex(said, "(?i)segmentation|signal code|backtrace|\\[ *0\\] ")
            deadline = time.monotonic() + 10  # an orphan has to be waited for by somebody else
            while any(self.runs(rank) for rank in ranks) and time.monotonic() < deadline:
                time.sleep(0.05)
            self.assertFalse([rank for rank in ranks if self.runs(rank)])

    def ranks_of(self, process):
        """The processes below this one that run the program."""
        found = []
        for children in pathlib.Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text(encoding="ascii").split():
                found += [child] if self.runs(child) else []
                found += self.ranks_of(child)
        return found

    def runs(self, process):
        """Whether the process is there and runs the program: its number may have been given to another."""
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/proc/{process}/exe").resolve(strict=True) == pathlib.Path(self.program)
        return False


if __name__ == "__main__":
    InEmptyFolder.program = str(pathlib.Path(sys.argv[1]).resolve())
    InEmptyFolder.mpirun = sys.argv[2] if len(sys.argv) > 2 else ""
    unittest.main(argv=sys.argv[:1], defaultTest=["Mpi" if InEmptyFolder.mpirun else "Threads"])
