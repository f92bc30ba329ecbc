# SPDX-License-Identifier: Apache-2.0
# NCCL brings neither a CMake package nor, everywhere, a pkg-config file. Call find_package(CUDAToolkit) first: NCCL is
# searched for beside it too.
#
# NCCL_ROOT, as a variable or in the environment (there also NCCL_HOME): where to look first. Otherwise the CUDA
# toolkit, the system's folders, and what Python's package of NCCL brings.
#
# Defines NCCL_FOUND, NCCL_VERSION and the target NCCL::nccl.

set(nccl_hints ${NCCL_ROOT} ENV NCCL_ROOT ENV NCCL_HOME)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${nccl_hints} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
# A Python package has no libnccl.so, only the file that programs load.
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2
  HINTS ${nccl_hints} ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
if(NOT NCCL_INCLUDE_DIR OR NOT NCCL_LIBRARY)
  find_program(nccl_python3 NAMES python3 NO_CACHE)
  if(nccl_python3)
    execute_process(COMMAND ${nccl_python3} -c "import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])"
      OUTPUT_VARIABLE nccl_of_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(nccl_of_python)
      find_path(NCCL_INCLUDE_DIR nccl.h PATHS ${nccl_of_python}/include NO_DEFAULT_PATH)
      find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 PATHS ${nccl_of_python}/lib NO_DEFAULT_PATH)
    endif()
  endif()
endif()

if(NCCL_INCLUDE_DIR)
  file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h nccl_version REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) [0-9]+$")
  list(TRANSFORM nccl_version REPLACE "^#define NCCL_[A-Z]+ " "")
  list(JOIN nccl_version "." NCCL_VERSION)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR VERSION_VAR NCCL_VERSION)
if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
  add_library(NCCL::nccl UNKNOWN IMPORTED)
  set_target_properties(NCCL::nccl PROPERTIES
    IMPORTED_LOCATION ${NCCL_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
endif()
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
