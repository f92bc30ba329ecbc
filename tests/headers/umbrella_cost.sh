#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: umbrella_cost.sh COMPILER INCLUDE_DIR
# What `#include <kith/kith.hpp>` costs a consumer. The time is printed, not judged (it depends on the machine); the
# number of lines that the compiler must read stands for it. immintrin.h alone would be another 40,000 lines.
set -euo pipefail
compiler=$1 include_dir=$2 limit=100000

umbrella=(-std=c++20 "-I$include_dir" -x c++ -include kith/kith.hpp /dev/null)
if "$compiler" "${umbrella[@]}" -M | grep -nE '/(immintrin|x86intrin|arm_neon)\.h'; then
  echo "the umbrella includes a header of vector intrinsics"
  exit 1
fi

TIMEFORMAT='syntax only: %R s (%U s of processor time)'
time "$compiler" "${umbrella[@]}" -fsyntax-only

lines=$("$compiler" "${umbrella[@]}" -E -P | wc -l)
echo "$lines lines after preprocessing, at most $limit"
[[ $lines -le $limit ]]
