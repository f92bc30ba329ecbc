# SPDX-License-Identifier: Apache-2.0
# Tests that run a compiler: they check what a consumer's compiler does with the headers, so each exists for every
# compiler in `kith_compilers` whatever this tree itself is built with. A missing tool is a skipped test, not a lost one.

# kith_find_tool(VARIABLE name...): an executable by the first of the names that exists.
macro(kith_find_tool variable)
  find_program(${variable} NAMES ${ARGN})
  mark_as_advanced(${variable})
endmacro()

# A test that tells its reason and counts as skipped.
function(kith_add_skipped_test name reason)
  add_test(NAME ${name} COMMAND sh -c "echo 'skipped: ${reason}'; exit 77")
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

# kith_add_test(name NEEDS VARIABLE... COMMAND ... [PROPERTIES ...]): a test if every needed tool was found, else a
# skipped one. The command runs in the C locale, because some tests read diagnostics.
function(kith_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "NEEDS;COMMAND;PROPERTIES")
  foreach(tool IN LISTS arg_NEEDS)
    if(NOT ${tool})
      string(REGEX REPLACE "^KITH_" "" tool ${tool})
      string(TOLOWER ${tool} tool)
      kith_add_skipped_test(${name} "${tool} is not installed")
      return()
    endif()
  endforeach()
  add_test(NAME ${name} COMMAND ${arg_COMMAND})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300 ENVIRONMENT "LC_ALL=C" ${arg_PROPERTIES})
endfunction()

kith_find_tool(KITH_GXX g++)
kith_find_tool(KITH_CLANGXX clang++)
kith_find_tool(KITH_AARCH64_GXX aarch64-linux-gnu-g++)
kith_find_tool(KITH_BASH bash)
kith_find_tool(KITH_PKG_CONFIG pkg-config)
# Debian's own interpreter first: its packages (matplotlib) are what the set-up installs.
find_program(KITH_PYTHON3 python3 PATHS /usr/bin NO_DEFAULT_PATH)
kith_find_tool(KITH_PYTHON3 python3)
mark_as_advanced(KITH_PYTHON3)

set(kith_compilers GXX CLANGXX)
set(kith_name_GXX g++)
set(kith_name_CLANGXX clang++)
set(kith_warnings -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
