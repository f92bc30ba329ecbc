#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: conventions.sh INCLUDE_DIR
# Rules that keep include/kith copyable and cheap and that no compiler checks. Prints every breach.
set -euo pipefail
cd "$1"
breaches=0

# breach RULE: reads "file:line: text" lines; each is a breach of the rule.
breach() {
  local line
  while IFS= read -r line; do
    printf '%s: %s\n' "$1" "$line"
    breaches=$((breaches + 1))
  done
}

mapfile -t files < <(find kith -type f | sort)
[[ ${#files[@]} -gt 0 ]] || { echo "no headers under $1" && exit 1; }

# Standard headers have neither a dot nor a slash in their name, and Kith's own are named from the top. The engine of
# threads may ask Linux, and Linux only, on which core it runs. The engine of MPI needs MPI and shares memory by POSIX.
# That of NCCL needs NCCL and CUDA's runtime, but not the C++ libraries that come with the toolkit.
breach "only <std> and <kith/...> may be included" < <(
  grep -nE '^[[:space:]]*#[[:space:]]*include' "${files[@]}" |
    grep -vE 'include <([a-z_0-9]+|kith/[a-z_0-9/]+\.(hpp|inl|cuh))>|^kith/thread/parking\.hpp:[0-9]+:#include <sched\.h>' |
    grep -vE '^kith/mpi(\.hpp|/[^:]*):[0-9]+:#include <(mpi|sched|unistd|fcntl|sys/[a-z]+)\.h>' |
    grep -vE -e '^kith/cuda/[^:]*:[0-9]+:#include <(cuda_runtime_api|nvtx3/nvToolsExt)\.h>' \
      -e '^kith/cuda/[^:]*\.cuh?:[0-9]+:#include <cuda_(runtime|fp16|bf16)\.h>' \
      -e '^kith/nccl(\.hpp|/[^:]*):[0-9]+:#include <(nccl|cuda_runtime_api)\.h>' || true)
# Where the libraries are missing, their headers are still there to be found: a compiler on a machine that has them
# would not notice.
breach "the core needs no engine, and the kernels need no NCCL" < <(
  grep -nE '#[[:space:]]*include <kith/(mpi|cuda|exchange/device|nccl)\b' "${files[@]}" |
    grep -vE -e '^kith/mpi[./].*<kith/mpi/' -e '^kith/(cuda|exchange/device|nccl)[./].*<kith/cuda/' \
      -e '^kith/(exchange/device|nccl)[./].*<kith/exchange/device/' -e '^kith/nccl[./].*<kith/nccl/' || true)
breach "too dear for a public header" < <(
  grep -nE '#[[:space:]]*include <(iostream|regex|format|iomanip|sstream|fstream)>' "${files[@]}" || true)
breach "a header neither prints nor ends the program" < <(
  grep -nE 'std::(cout|cerr|clog|exit|quick_exit)\b|\bprintf\(' "${files[@]}" || true)
breach "macros start with KITH_" < <(
  grep -nE '^[[:space:]]*#[[:space:]]*define' "${files[@]}" | grep -vE 'define KITH_' || true)
breach "no tabs, no space at the end of a line" < <(grep -nP '\t|[[:space:]]$' "${files[@]}" || true)

for file in "${files[@]}"; do
  [[ $(head -n 1 "$file") == "// SPDX-License-Identifier: Apache-2.0" ]] || breach "the first line is the licence" <<<"$file"
  [[ $file == *.cu ]] || grep -qE '^(#pragma once$|// No #pragma once:)' "$file" ||
    breach "needs #pragma once, or the reason for none" <<<"$file"
  [[ $(wc -l <"$file") -le 600 ]] || breach "600 lines are the limit" <<<"$file"
done

[[ $breaches -eq 0 ]] || { echo "$breaches breaches in ${#files[@]} headers" && exit 1; }
echo "${#files[@]} headers keep to the rules"
