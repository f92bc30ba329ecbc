#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads the machine code of the kernels: sass_test.py --include DIR [--nvcc PATH] [--cuobjdump PATH]

What makes a kernel as fast as memory, and what keeps its bits those of the host, does not show in any result on an
emulator: 16-byte loads and stores, enough of them in flight, no registers that live in memory, no fused multiply-add.
"""
import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ARCHITECTURES = (80, 90)
DTYPES = ("f32", "f64", "f16", "bf16")
AVERAGE = re.compile(r"average_kernelILNS_5DTypeE(\d)ELj(\d+)ELj(\d+)ELb(\d)E")
ARITHMETIC = {"f64": {"DADD", "DMUL"}, "f32": {"FADD", "FMUL"}, "f16": {"FADD", "FMUL"}, "bf16": {"FADD", "FMUL"}}


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def functions(listing):
    """The instructions of each function: (opcode with modifiers, operands)."""
    for part in re.split(r"\n\s*Function : ", listing)[1:]:
        name, body = part.split("\n", 1)
        code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;\n]*);", body, re.M)
        yield name.strip(), code


def in_flight(opcodes):
    """The most 16-byte loads that are issued without a 16-byte store between them."""
    most = now = 0
    for opcode in opcodes:
        if re.match(r"STG\..*128", opcode):
            now = 0
        elif re.match(r"LDG\..*128", opcode):
            now += 1
            most = max(most, now)
    return most


def faults(name, code):
    """What is wrong with a kernel, whichever it is."""
    opcodes = [opcode for opcode, _ in code]
    for opcode, operands in code:
        base = opcode.split(".")[0]
        if base in ("LDL", "STL"):
            yield f"{opcode}: registers live in memory"
        if base in ("LD", "ST"):
            yield f"{opcode}: an access that finds out only at run time which memory it is to"
        if base in ("FFMA", "DFMA", "HFMA2") and not re.match(r"\s*R\d+, -RZ, RZ,", operands):  # that one is a constant
            yield f"{opcode}{operands}: a product that is not rounded on its own"
        if "FTZ" in opcode:
            yield f"{opcode}: flushes subnormals"
    average = AVERAGE.search(name)
    if average:
        yield from faults_of_average(DTYPES[int(average[1])], int(average[2]), average[4] == "1", opcodes)
    elif "change_kernel" in name:
        if in_flight(opcodes) < 6 or not any(re.match(r"STG\..*128", opcode) for opcode in opcodes):
            yield "less than six 16-byte loads at a time, or no 16-byte stores"
    elif "copy_kernel" in name:
        if in_flight(opcodes) < 4 or not any(re.match(r"STG\..*128", opcode) for opcode in opcodes):
            yield "less than four 16-byte loads at a time, or no 16-byte stores"
    elif "distance_kernel" in name or "digest_kernel" in name:
        if not any(re.match(r"LDG\..*128", opcode) for opcode in opcodes):
            yield "no 16-byte loads"


def faults_of_average(dtype, sources, shadowed, opcodes):
    packs = 4 if sources == 1 and not shadowed else 2
    wanted = packs * ((sources or 1) + 1)
    if in_flight(opcodes) < wanted:
        yield f"{in_flight(opcodes)} 16-byte loads at a time, not {wanted}"
    stores = sum(1 for opcode in opcodes if re.match(r"STG\..*128", opcode))
    if stores < packs:
        yield f"{stores} 16-byte stores, not {packs}"
    # Single elements: outside of the packs, once, and what describes the tile. A main loop of them would have many.
    narrow = sum(1 for opcode in opcodes if re.match(r"(LDG|STG)\.(?!.*128)", opcode))
    limit = 2 * (sources or 4) + 6 + (4 if shadowed else 0)
    if narrow > limit:
        yield f"{narrow} narrow accesses, more than the {limit} outside of the main loop"
    missing = ARITHMETIC[dtype] - {opcode.split(".")[0] for opcode in opcodes}
    if missing:
        yield f"no {', '.join(sorted(missing))}: is this the right code?"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--include", type=pathlib.Path, required=True)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    arguments = parser.parse_args()
    nvcc = shutil.which(arguments.nvcc)
    if not nvcc:
        skip("nvcc was not found")
    beside = pathlib.Path(nvcc).resolve().parent / "cuobjdump"
    cuobjdump = shutil.which(arguments.cuobjdump) or shutil.which(beside)
    if not cuobjdump:
        skip("cuobjdump, which is part of the CUDA toolkit, was not found")

    bad = 0
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            cubin = pathlib.Path(folder) / "kernels.cubin"
            subprocess.run([nvcc, "-std=c++20", f"-arch=sm_{architecture}", f"-I{arguments.include}", "-cubin", "-o", cubin,
                            arguments.include / "kith/cuda/kernels.cu"], check=True)
            listing = subprocess.run([cuobjdump, "-sass", cubin], check=True, capture_output=True, text=True).stdout
        kernels = dict(functions(listing))
        averages = sorted(match.groups() for match in map(AVERAGE.search, kernels) if match)
        expected = {(dtype, sources) for dtype in "0123" for sources in "0123"}
        if {(dtype, sources) for dtype, sources, _, _ in averages} != expected:
            print(f"sm_{architecture}: weighted averages found: {averages}")
            bad += 1
        for name, code in kernels.items():
            for fault in faults(name, code):
                print(f"sm_{architecture}: {name}: {fault}")
                bad += 1
        print(f"sm_{architecture}: {len(kernels)} kernels read, {len(averages)} of them weighted averages")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
