# SPDX-License-Identifier: Apache-2.0
# Programs and tests that run as several MPI processes, with every MPI that is installed. Debian can have two side by
# side, and tells them apart by the ends of names (mpicc.openmpi, mpicc.mpich); elsewhere there is the default one.
#
# kith_mpi_implementations     the names to test with: openmpi, mpich; or default, if MPI is there under neither name
# kith_mpi_<name>              for each of them, and for the default one: what a program links; missing if not found
# KITH_MPI_<NAME>_LAUNCHER     its mpirun
# KITH_MPI_<NAME>_COMPILE, _LINK   its flags, for tests that run a compiler themselves
include(${CMAKE_CURRENT_LIST_DIR}/KithTestTools.cmake)

# As environment, not as options: it is ignored by an MPI that it does not concern. The machines that test are small and
# may be containers: there Open MPI must be told that root and more ranks than cores are meant, and not to bind ranks.
set(kith_mpi_environment
  LC_ALL=C
  OMPI_ALLOW_RUN_AS_ROOT=1
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_rmaps_base_oversubscribe=1
  OMPI_MCA_hwloc_base_binding_policy=none)
if(KITH_SANITIZE)
  list(APPEND kith_mpi_environment ASAN_OPTIONS=detect_leaks=0)  # Open MPI itself loses 100 kB at its end
endif()

# A target from what the compiler wrapper says that it adds: -I, -L and -l, behind the name of the compiler.
function(kith_add_mpi_implementation name)
  string(TOUPPER ${name} NAME)
  kith_find_tool(KITH_MPI_${NAME}_CC mpicc.${name})
  kith_find_tool(KITH_MPI_${NAME}_LAUNCHER mpiexec.${name})
  if(NOT KITH_MPI_${NAME}_CC OR NOT KITH_MPI_${NAME}_LAUNCHER)
    return()
  endif()
  execute_process(COMMAND ${KITH_MPI_${NAME}_CC} -show OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  list(POP_FRONT flags)
  set(compile ${flags})
  list(FILTER compile INCLUDE REGEX "^-I")
  list(TRANSFORM compile REPLACE "^-I" "-isystem")
  list(FILTER flags INCLUDE REGEX "^-(L|l|Wl,)")
  add_library(kith_mpi_${name} INTERFACE)
  target_link_libraries(kith_mpi_${name} INTERFACE kith::kith ${flags})
  target_compile_options(kith_mpi_${name} INTERFACE ${compile})
  target_compile_definitions(kith_mpi_${name} INTERFACE
    $<TARGET_PROPERTY:kith_mpi,INTERFACE_COMPILE_DEFINITIONS>)
  set(KITH_MPI_${NAME}_COMPILE ${compile} PARENT_SCOPE)
  set(KITH_MPI_${NAME}_LINK ${flags} PARENT_SCOPE)
endfunction()

set(kith_mpi_implementations openmpi)
if(NOT KITH_SANITIZE)
  list(APPEND kith_mpi_implementations mpich)  # what sanitizers look for is in Kith's code: one MPI is enough for them
endif()
if(KITH_MPI)
  set(kith_no_mpi "is not installed")
  foreach(name IN LISTS kith_mpi_implementations)
    kith_add_mpi_implementation(${name})
  endforeach()
else()
  set(kith_no_mpi "is left out: KITH_MPI is ${KITH_MPI}")
endif()
if(TARGET kith::mpi)
  add_library(kith_mpi_default ALIAS kith_mpi)
  set(KITH_MPI_DEFAULT_LAUNCHER ${MPIEXEC_EXECUTABLE})
  list(TRANSFORM MPI_CXX_INCLUDE_DIRS PREPEND "-isystem" OUTPUT_VARIABLE KITH_MPI_DEFAULT_COMPILE)
  set(KITH_MPI_DEFAULT_LINK ${MPI_CXX_LIBRARIES})
  if(NOT TARGET kith_mpi_openmpi AND NOT TARGET kith_mpi_mpich)
    set(kith_mpi_implementations default)
  endif()
endif()

# kith_add_mpi_program(name source...): the program name_<implementation>, once for every implementation that is there.
function(kith_add_mpi_program name)
  foreach(implementation IN LISTS kith_mpi_implementations)
    if(TARGET kith_mpi_${implementation})
      add_executable(${name}_${implementation} ${ARGN})
      target_link_libraries(${name}_${implementation} PRIVATE kith_mpi_${implementation} kith_development)
    endif()
  endforeach()
endfunction()

# kith_add_mpi_test(name RANKS n [IMPLEMENTATION name] [WRAPPER command...] [LAUNCHER_OPTIONS option...] [TIMEOUT s]
#                   COMMAND program [argument...] [PROPERTIES ...])
# The program under the launcher of the implementation (default: that of kith::mpi) as n ranks. The wrapper is put before
# the launcher. KITH_TEST_RANKS tells the ranks how many they have to be: the launcher of another MPI would start n
# programs of one rank each, all content. Status 77 is a skipped test.
function(kith_add_mpi_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "RANKS;IMPLEMENTATION;TIMEOUT"
    "WRAPPER;LAUNCHER_OPTIONS;COMMAND;PROPERTIES")
  if(NOT arg_IMPLEMENTATION)
    set(arg_IMPLEMENTATION default)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(NOT TARGET kith_mpi_${arg_IMPLEMENTATION})
    kith_add_skipped_test(${name} "the ${arg_IMPLEMENTATION} MPI ${kith_no_mpi}")
    return()
  endif()
  string(TOUPPER ${arg_IMPLEMENTATION} IMPLEMENTATION)
  list(POP_FRONT arg_COMMAND program)
  if(TARGET ${program})
    set(program $<TARGET_FILE:${program}>)
  endif()
  add_test(NAME ${name} COMMAND ${arg_WRAPPER}
    ${KITH_MPI_${IMPLEMENTATION}_LAUNCHER} -n ${arg_RANKS} ${arg_LAUNCHER_OPTIONS} ${program} ${arg_COMMAND})
  # The launcher keeps the time: when CTest must end it, it leaves files in /dev/shm. Ranks that wait keep a core busy: a
  # test takes as many processors as ranks, a small machine as a whole.
  math(EXPR patience "${arg_TIMEOUT} + 15")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${patience} PROCESSORS ${arg_RANKS} SKIP_RETURN_CODE 77 LABELS mpi
    ENVIRONMENT "${kith_mpi_environment};KITH_TEST_RANKS=${arg_RANKS};MPIEXEC_TIMEOUT=${arg_TIMEOUT}"
    ${arg_PROPERTIES})
endfunction()
