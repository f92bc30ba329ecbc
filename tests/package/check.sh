#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check.sh CHECK [COMPILER [LAUNCHER]]
# One check of the package; CMakeLists.txt beside this file sets the variables and names the checks.
set -euo pipefail

check=$1 compiler=${2:-} launcher=${3:-}
cmake=$KITH_TEST_CMAKE source=$KITH_TEST_SOURCE
consumer=$source/tests/package/consumer
prefix=$KITH_TEST_SCRATCH/moved
work=$KITH_TEST_SCRATCH/$check-${compiler##*/}

fail() {
  printf 'package test %s: %s\n' "$check" "$*" >&2
  exit 1
}

# Configures, builds and runs the consumer.
consume() {
  "$cmake" -S "$consumer" -B "$work" -DCMAKE_CXX_COMPILER="$compiler" -DWAY="$check" "$@"
  "$cmake" --build "$work"
  expect_mean "$work/consumer"
}

# The same with the MPI engine, as 4 ranks.
consume_mpi() {
  "$cmake" -S "$source/tests/package/mpi_consumer" -B "$work" -DCMAKE_CXX_COMPILER="$compiler" -DWAY="$check" "$@"
  "$cmake" --build "$work"
  [[ $("$launcher" -n 4 "$work/consumer") == "every element is 1.5" ]] || fail "the program printed something else"
}

# Builds the programs of $1 with the NCCL engine.
consume_nccl() {
  "$cmake" -S "$source/tests/package/nccl_consumer" -B "$work" -DCMAKE_CXX_COMPILER="$compiler" -DWAY="$check" \
    -DCMAKE_CUDA_ARCHITECTURES=80-virtual "${@:2}"
  read -ra programs <<<"$1"
  "$cmake" --build "$work" --target "${programs[@]}"
}

expect_mean() { [[ $("$1") == "every element is 3.5" ]] || fail "the program printed something else"; }

# Asks for the installed package as find_package(kith $1 ...) does; what follows are further options of cmake.
request() {
  local components=$1
  shift
  rm -rf "$work"
  "$cmake" -S "$source/tests/package/request" -B "$work" -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_PREFIX_PATH="$prefix" -DREQUEST="$components" "$@" 2>&1
}

# Expects find_package(kith $1 ...) to be granted, and cmake to say $2.
expect_found() {
  local output
  output=$(request "$1" "${@:3}") || fail "find_package(kith $1) was refused: $output"
  [[ $output == *"${2:-}"* ]] || fail "find_package(kith $1): no word of '$2' in: $output"
}

# Expects find_package(kith $1 ...) to be refused with a message that says $2 (CMake wraps its messages).
expect_refused() {
  local output
  if output=$(request "$1" "${@:3}"); then fail "find_package(kith $1) was granted"; fi
  output=$(tr -s '\n ' ' ' <<<"$output")
  [[ $output == *"$2"* ]] || fail "find_package(kith $1): no word of '$2' in: $output"
}

rm -rf "$work"
case $check in
  install)
    # Everything is checked in the place that it was moved to: that nothing points to where it was installed is a check.
    rm -rf "$KITH_TEST_SCRATCH/staged" "$prefix"
    "$cmake" --install "$KITH_TEST_BUILD" --prefix "$KITH_TEST_SCRATCH/staged"
    mv "$KITH_TEST_SCRATCH/staged" "$prefix"
    ;;
  installed_tree)
    diff -r "$source/include" "$prefix/include" || fail "the installed headers differ from include/"
    files=$(cd "$prefix" && find . -type f ! -path './include/kith/*' | sort | tr '\n' ' ')
    [[ $files == "./share/cmake/kith/FindNCCL.cmake ./share/cmake/kith/kithConfig.cmake \
./share/cmake/kith/kithConfigVersion.cmake ./share/cmake/kith/kithCudaTargets.cmake \
./share/cmake/kith/kithMpiTargets.cmake ./share/cmake/kith/kithNcclTargets.cmake ./share/cmake/kith/kithTargets.cmake ./share/pkgconfig/kith.pc " ]] || fail "unexpected or missing files: $files"
    ! grep -rlF -e "$KITH_TEST_SCRATCH" -e "$source" "$prefix" || fail "an installed file names a folder of the build"
    ;;
  versions)
    expect_found 0.1
    expect_found "0.1...<0.2"
    for version in 0.0 0.2 1.0; do
      expect_refused $version "compatible with requested version \"$version\""
    done
    ;;
  components)
    expect_found "0.1;OPTIONAL_COMPONENTS;warp" "with ''"
    expect_found "0.1;COMPONENTS;core" "with ''"
    expect_refused "0.1;COMPONENTS;core;warp" "has no component warp; it has: core, cuda, mpi, nccl"
    ;;
  components_without_mpi)
    hide_mpi=-DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON
    expect_found "0.1;COMPONENTS;core;OPTIONAL_COMPONENTS;mpi" "with ''" $hide_mpi
    reason="component mpi needs MPI, which was not found (Debian: libopenmpi-dev)"
    expect_refused "0.1;COMPONENTS;mpi" "Reason given by package: $reason" $hide_mpi
    request "0.1;COMPONENTS;mpi" $hide_mpi >"$KITH_TEST_SCRATCH/refused" || true
    grep -qx "  $reason" "$KITH_TEST_SCRATCH/refused" || fail "the reason is more than one line"
    ;;
  components_with_mpi)
    expect_found "0.1;COMPONENTS;core;mpi" "with 'mpi'"
    expect_found "0.1;OPTIONAL_COMPONENTS;mpi;warp" "with 'mpi'"
    expect_refused "0.1;COMPONENTS;mpi;warp" "has no component warp; it has: core, cuda, mpi, nccl"
    ;;
  components_without_cuda)
    hide_cuda=-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON
    expect_found "0.1;COMPONENTS;core;OPTIONAL_COMPONENTS;cuda;nccl" "with ''" $hide_cuda
    for component in cuda nccl; do
      reason="component $component needs the CUDA toolkit, 12.0 or newer, which was not found"
      expect_refused "0.1;COMPONENTS;$component" "$reason" $hide_cuda
    done
    ;;
  components_with_cuda)
    expect_refused "0.1;COMPONENTS;cuda" "component cuda needs the language CUDA in your project: project(NAME LANGUAGES CXX"
    expect_found "0.1;COMPONENTS;cuda" "with 'cuda'" -DLANGUAGES=CUDA
    expect_found "0.1;COMPONENTS;nccl" "with 'cuda;nccl'" -DLANGUAGES=CUDA
    hide_nccl=-DCMAKE_DISABLE_FIND_PACKAGE_NCCL=ON
    expect_found "0.1;COMPONENTS;cuda;OPTIONAL_COMPONENTS;nccl" "with 'cuda'" -DLANGUAGES=CUDA $hide_nccl
    reason="component nccl needs NCCL, 2.18 or newer, which was not found (NCCL_ROOT says where it is)"
    expect_refused "0.1;COMPONENTS;nccl" "$reason" -DLANGUAGES=CUDA $hide_nccl
    ;;
  find_package) consume -DCMAKE_PREFIX_PATH="$prefix" ;;
  mpi_find_package) consume_mpi -DCMAKE_PREFIX_PATH="$prefix" ;;
  mpi_add_subdirectory) consume_mpi -DKITH_SOURCE="$source" ;;
  nccl_find_package) consume_nccl "without_nvcc with_both" -DCMAKE_PREFIX_PATH="$prefix" ;;
  nccl_add_subdirectory) consume_nccl without_nvcc -DKITH_SOURCE="$source" ;;
  add_subdirectory | fetch_content) consume -DKITH_SOURCE="$source" ;;
  copied_headers)
    mkdir -p "$work/third_party"
    cp -R "$source/include/kith" "$work/third_party/kith"
    "$compiler" -std=c++20 -I "$work/third_party" "$consumer/main.cpp" -pthread -o "$work/program"
    expect_mean "$work/program"
    ;;
  nccl_copied_headers)
    # A program that nvcc compiles takes the headers as they are; one that it does not, one more file.
    mkdir -p "$work/third_party"
    cp -R "$source/include/kith" "$work/third_party/kith"
    nvcc=("$CUDACXX" -ccbin="$compiler" -std=c++20 -arch=compute_80 -DWITHOUT_CODECS -I "$work/third_party"
      -I "${KITH_TEST_NCCL_INCLUDE}" -Xlinker="$KITH_TEST_NCCL_LIBRARY")
    cd "$source/tests/package/nccl_consumer"
    "${nvcc[@]}" main.cu -o "$work/with_nvcc"
    "${nvcc[@]}" main.cpp "$work/third_party/kith/cuda/kernels.cu" -o "$work/without_nvcc"
    ;;
  pkg_config)
    mkdir -p "$work"
    export PKG_CONFIG_PATH=$prefix/share/pkgconfig
    read -ra flags < <("$KITH_TEST_PKG_CONFIG" --cflags --libs 'kith >= 0.1')
    "$compiler" -std=c++20 "$consumer/main.cpp" "${flags[@]}" -o "$work/program"
    expect_mean "$work/program"
    ;;
  *) fail "there is no such check" ;;
esac
