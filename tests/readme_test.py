#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does what the documentation says: compiles and runs its programs, builds its CMake snippets, runs its commands.

usage: readme_test.py --source DIR --build DIR --work DIR [--list] FILE...   (a file that is missing is skipped)

Every fenced block of these languages is tested; a new one cannot slip through:

  ```cpp    with a main(): a program, compiled with g++ and nothing but `-std=c++20 -I include`, and run.
            Without one: the marker `<!-- test: body -->` says that it is the inside of a function; its #include lines
            go to the top, <kith/kith.hpp> is always there, and it is compiled and run as well.
  ```cmake  a piece of a CMakeLists.txt that links a target of the reader's; it gets a project and that target around
            it, and is configured, built and run. `find_package` finds a fresh installation, FetchContent and
            add_subdirectory find this tree.
  ```sh     commands, run by bash in a copy of the source tree, as one script that ends at the first failure.
            STAND_INS below says which commands are replaced, and by what.

The marker `<!-- test: mpi N -->` says that a block needs MPI: a program is compiled by mpicxx and started as N ranks by
mpirun. `<!-- test: nccl -->` says that it needs CUDA and NCCL: a program is read by the compiler, which proves its names
and types, but not run. Where those are missing the block is left out, and the report says so.

The marker `<!-- test: skip REASON -->` leaves a block out, and the report says so. The marker `<!-- test: output -->`
above a ```text block says that it is what the block before it prints, but for the space between words; `...` in it
stands for anything. Markers stand on the line before the fence.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

# Commands that cannot be run as they stand: (pattern of the whole command, what is run instead or None, why).
# {build} is a tree with everything built, {source} the copy of the source tree, \1 a group of the pattern.
STAND_INS = [
    (r"git clone .*", None, "the copy of the tree stands for the clone"),
    (r"cd kith", None, "the commands run there already"),
    (r"(sudo )?apt-get install .*", None, "the set-up is the business of ./dev"),
    (r"\./dev (test|lint)", None, "this very test is a part of it"),
    (r"\./dev demo(.*)", r"{build}/bin/train_digits\1 --steps 20", "the program that it builds, with few steps"),
    (r"\./dev bench(.*)", r"{build}/bin/kith_bench\1", "the program that it builds"),
    (r"build/[a-z]+/bin/(.*)", r"{build}/bin/\1", "the programs of this build"),
    (r"cp -r (?:kith/)?include/kith (.*)", r"mkdir -p \1 && cp -r include/kith \1", "into a folder made for it"),
]

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- test: (\w+) ?(.*?) ?-->\s*$")
COMMAND_LIMIT_S = 240
# As environment, not as options: an MPI that they do not concern ignores them. See cmake/KithMpiTests.cmake.
MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}


class Failure(Exception):
    """A block that does not do what the page says."""


def run(command, cwd, **options):
    """Runs a command, returns its output; raises Failure with all of it if it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=COMMAND_LIMIT_S, check=False, **options)
    if done.returncode != 0:
        shown = command if isinstance(command, str) else " ".join(map(str, command))
        raise Failure(f"exit status {done.returncode}: {shown}\n{done.stdout}")
    return done.stdout


def cuda_headers():
    """The folder of CUDA's headers and NCCL's; None if they are not there together."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folder = pathlib.Path(nvcc).resolve().parent.parent / "include"
    return folder if (folder / "nccl.h").exists() and (folder / "cuda_runtime_api.h").exists() else None


def says(expected, printed):
    """Whether the printed text is the expected one: words compare, `...` stands for any words."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in expected.split("...")]
    return re.fullmatch(r"\s*" + r"\s*.*\s*".join(parts) + r"\s*", printed, re.DOTALL) is not None


class Block:
    """A fenced block: its language, text, place and marker."""

    def __init__(self, page, match, text):
        self.language, self.text = match.group(1), match.group(2)
        self.line = text.count("\n", 0, match.start()) + 1
        self.place = f"{page.name}:{self.line}"
        marker = MARKER.search(text[:match.start()].rstrip("\n").rpartition("\n")[2])
        self.marker, self.reason = marker.groups() if marker else ("", "")


class Runner:
    """Runs the blocks of the pages in a work folder of its own."""

    def __init__(self, source, build, work):
        self.source, self.build, self.work = source, build, work
        self.copy = None
        # The interpreter that runs this file is the one that the commands get.
        self.environment = dict(os.environ, **MPI_ENVIRONMENT, LC_ALL="C.UTF-8", MPLBACKEND="Agg",
                                PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])

    def folder(self, name):
        path = self.work / re.sub(r"\W+", "_", name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def cpp(self, block):
        """Compiles a program with nothing but the headers and runs it; returns its output."""
        program = block.text
        if not re.search(r"\bint main\(", program):
            if block.marker != "body":
                raise Failure("no main(): mark it with <!-- test: body --> or <!-- test: skip REASON -->")
            includes = re.findall(r"^#include .*\n", program, re.MULTILINE)
            body = re.sub(r"^#include .*\n", "", program, flags=re.MULTILINE)
            program = "".join(includes) + "#include <vector>\n#include <kith/kith.hpp>\nint main() {\n" + body + "}\n"
        folder = self.folder(block.place)
        (folder / "main.cpp").write_text(program)
        arguments = ["-std=c++20", "-I", self.source / "include", "main.cpp"]
        if block.marker == "nccl":
            compiler = "mpicxx" if "<kith/mpi.hpp>" in program else "g++"
            return run([compiler, *arguments, "-isystem", cuda_headers(), "-fsyntax-only"], folder)
        if block.marker == "mpi":
            run(["mpicxx", *arguments, "-pthread", "-o", "main"], folder)
            return run(["mpirun", "-n", block.reason, "./main"], folder, env=self.environment)
        run(["g++", *arguments, "-pthread", "-o", "main"], folder)
        return run(["./main"], folder)

    def cmake(self, block):
        """Builds the reader's target with the snippet around it."""
        target = re.search(r"target_link_libraries\((\w+)", block.text)
        if not target:
            raise Failure("links no target: there is nothing to build")
        folder = self.folder(block.place)
        (folder / "main.cpp").write_text(
            "#include <kith/kith.hpp>\nint main() { return kith::version == 0; }\n")
        frame = "" if "project(" in block.text else "cmake_minimum_required(VERSION 3.25)\nproject(reader CXX)\n"
        if "add_executable(" not in block.text:
            frame += f"add_executable({target.group(1)} main.cpp)\n"
        (folder / "CMakeLists.txt").write_text(frame + block.text)
        for path in re.findall(r"add_subdirectory\(([^)\s]+)", block.text):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(self.source)
        prefix = folder / "prefix"
        run(["cmake", "--install", self.build, "--prefix", prefix], folder)
        run(["cmake", "-S", ".", "-B", "out", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_CXX_COMPILER=g++",
             f"-DFETCHCONTENT_SOURCE_DIR_KITH={self.source}", "-DFETCHCONTENT_FULLY_DISCONNECTED=ON"], folder)
        run(["cmake", "--build", "out"], folder)
        return run([folder / "out" / target.group(1)], folder)

    def sh(self, block):
        """Runs the commands as one script in the copy of the tree; returns all they print."""
        if self.copy is None:
            self.copy = self.folder("tree")
            shutil.copytree(self.source, self.copy, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns("build", "build-*", ".git", "__pycache__"))
        script = []
        for line in block.text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s+)#.*$", "", line).strip()
            command = self.stand_in(command) if command else None
            if command is not None:
                print(f"    $ {command}", flush=True)
                script.append(command)
        return run(["bash", "-euo", "pipefail", "-c", "\n".join(script)], self.copy, env=self.environment)

    def stand_in(self, command):
        """What is run for a command: itself, its replacement, or None."""
        for pattern, replacement, why in STAND_INS:
            match = re.fullmatch(pattern, command)
            if match:
                print(f"    {'skipped' if replacement is None else 'stands in'}: {command} ({why})")
                if replacement is None:
                    return None
                return match.expand(replacement).format(build=self.build, source=self.copy)
        return command


def check_page(page, runner, list_only):
    """Runs every block of a page; returns (tested, failures)."""
    text = page.read_text(encoding="utf-8")
    tested, failures, printed, left_out = 0, [], None, ""
    for block in (Block(page, match, text) for match in FENCE.finditer(text)):
        is_output = block.marker == "output"
        if block.language not in ("cpp", "cmake", "sh") and not is_output:
            continue
        print(f"{block.place}: {block.language} {block.marker} {block.reason}".rstrip(), flush=True)
        if block.marker == "skip" or list_only:
            if block.marker == "skip" and not block.reason:
                failures.append(f"{block.place}: a skipped block needs its reason")
            continue
        if not is_output:
            left_out = ""
            needs_mpi = block.marker == "mpi" or (block.marker == "nccl" and "<kith/mpi.hpp>" in block.text)
            if needs_mpi and not (shutil.which("mpicxx") and shutil.which("mpirun")):
                left_out = "MPI is not installed"
            if block.marker == "nccl" and not cuda_headers():
                left_out = "CUDA's and NCCL's headers are not installed"
        if left_out:
            print(f"    left out: {left_out}")
            continue
        try:
            if is_output:
                if printed is None or not says(block.text, printed):
                    raise Failure(f"this is not what the block before it prints, which is:\n{printed}")
            else:
                printed = getattr(runner, block.language)(block)
            tested += 1
        except (Failure, subprocess.TimeoutExpired) as failure:
            failures.append(f"{block.place}: {failure}")
            print("    FAILED", flush=True)
    return tested, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("source", "build", "work"):
        parser.add_argument(f"--{name}", type=lambda p: pathlib.Path(p).resolve(), required=True)
    parser.add_argument("--list", action="store_true", help="only show what would be tested")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    options = parser.parse_args()

    missing = [page for page in options.files if not page.exists()]
    for page in missing:
        print(f"skipped: {page.name} is not there")
    runner = Runner(options.source, options.build, options.work)
    results = [check_page(page, runner, options.list) for page in options.files if page.exists()]
    tested = sum(count for count, _ in results)
    failures = [failure for _, found in results for failure in found]
    for failure in failures:
        print(f"\n{failure}")
    print(f"{tested} blocks do what they say, {len(failures)} do not")
    if failures:
        return 1
    if tested == 0 and not options.list:
        if len(missing) == len(options.files):
            return 77
        print("there was nothing to test")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
