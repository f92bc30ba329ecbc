# SPDX-License-Identifier: Apache-2.0
# What the project's own programs are built with: warnings and, on request, sanitizers. Link `kith_development`
# privately; it is never installed, and consumers of kith::kith see nothing of it.

option(KITH_WERROR "Treat warnings in the project's own programs as errors" OFF)
option(KITH_UNITY_BUILD
  "Compile several tests as one translation unit: a third of the time for all, more for one that has changed" ON)
set(KITH_SANITIZE "" CACHE STRING "Sanitizers for the project's own programs: 'address,undefined' or 'thread'")

add_library(kith_development INTERFACE)
target_link_libraries(kith_development INTERFACE kith::kith)
# nvcc hands on to the host's compiler what it does not know itself. It writes code that a pedant would refuse.
target_compile_options(kith_development INTERFACE -Wall -Wextra
  "$<$<COMPILE_LANGUAGE:CXX>:-Wpedantic;-Wconversion;-Wshadow>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # It would collect garbage again and again: a quarter of its time, to save memory that is there.
  set(memory --param=ggc-min-expand=300 --param=ggc-min-heapsize=2000000)
  list(JOIN memory "," memory_for_nvcc)
  target_compile_options(kith_development INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:${memory}>" "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${memory_for_nvcc}>")
endif()
if(KITH_WERROR)
  target_compile_options(kith_development INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Werror> "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(KITH_SANITIZE)
  # No recovery: the first finding fails the test that made it.
  target_compile_options(kith_development INTERFACE
    -fsanitize=${KITH_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(kith_development INTERFACE -fsanitize=${KITH_SANITIZE})
endif()
