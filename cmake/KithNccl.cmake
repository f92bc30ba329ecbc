# SPDX-License-Identifier: Apache-2.0
# kith::cuda, the kernels, and kith::nccl, the engine of NCCL. As with MPI the targets are always there and always
# installed; their aliases exist only where CUDA, and NCCL too, were found.
#
# kith_no_cuda, kith_no_nccl   why there is no kith::cuda or kith::nccl; empty if there is
set(kith_cuda_oldest 12.0)  # the first nvcc that knows C++20
set(kith_nccl_oldest 2.18)

# The only source files of the library. kernels.cu: the kernels for programs of which no part is compiled by nvcc; in
# those that have one it is not needed and does no harm. codec_kernels.cu: the kernels of codecs, for programs that use an
# exchange which encodes; others may set the property KITH_CUDA_CODECS of their target to OFF and save its compilation.
add_library(kith_cuda INTERFACE)
set_target_properties(kith_cuda PROPERTIES EXPORT_NAME cuda)
target_link_libraries(kith_cuda INTERFACE kith CUDA::cudart)
set(kith_codecs_wanted "$<NOT:$<STREQUAL:$<TARGET_PROPERTY:KITH_CUDA_CODECS>,OFF>>")
target_sources(kith_cuda INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include/kith/cuda/kernels.cu>
  $<INSTALL_INTERFACE:$<INSTALL_PREFIX>/include/kith/cuda/kernels.cu>
  $<BUILD_INTERFACE:$<${kith_codecs_wanted}:${PROJECT_SOURCE_DIR}/include/kith/cuda/codec_kernels.cu>>
  $<INSTALL_INTERFACE:$<${kith_codecs_wanted}:$<INSTALL_PREFIX>/include/kith/cuda/codec_kernels.cu>>)
# CMake 3.25 does not know C++20 for nvcc.
target_compile_options(kith_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)

add_library(kith_nccl INTERFACE)
set_target_properties(kith_nccl PROPERTIES EXPORT_NAME nccl)
target_link_libraries(kith_nccl INTERFACE kith_cuda NCCL::nccl $<TARGET_NAME_IF_EXISTS:CUDA::nvtx3>)

set(kith_no_cuda "")
if(KITH_NCCL)
  find_package(CUDAToolkit ${kith_cuda_oldest} QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(kith_no_cuda "the CUDA toolkit, ${kith_cuda_oldest} or newer, was not found")
  elseif(PROJECT_IS_TOP_LEVEL)
    # One host compiler for everything, so that the sanitizers of both kinds of objects are the same. The shared runtime
    # can be replaced by that of tests/gpu_emulator.
    if(NOT DEFINED ENV{CUDACXX})
      set(ENV{CUDACXX} ${CUDAToolkit_NVCC_EXECUTABLE})
    endif()
    if(NOT DEFINED ENV{CUDAHOSTCXX})
      set(ENV{CUDAHOSTCXX} ${CMAKE_CXX_COMPILER})
    endif()
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
    set(CMAKE_CUDA_ARCHITECTURES "80;90" CACHE STRING "The GPUs to compile for")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      enable_language(CUDA)
    else()
      set(kith_no_cuda "nvcc is not there or does not work with the host compiler $ENV{CUDAHOSTCXX}")
    endif()
  elseif(NOT CMAKE_CUDA_COMPILER_LOADED)
    set(kith_no_cuda "the project does not enable the language CUDA: project(NAME LANGUAGES CXX CUDA)")
  endif()
else()
  set(kith_no_cuda "KITH_NCCL is ${KITH_NCCL}")
endif()

set(kith_no_nccl "${kith_no_cuda}")
if(NOT kith_no_cuda)
  add_library(kith::cuda ALIAS kith_cuda)
  list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
  find_package(NCCL ${kith_nccl_oldest} QUIET)
  list(POP_BACK CMAKE_MODULE_PATH)
  if(NCCL_FOUND)
    add_library(kith::nccl ALIAS kith_nccl)
  else()
    set(kith_no_nccl "NCCL, ${kith_nccl_oldest} or newer, was not found")
  endif()
endif()
if(KITH_NCCL AND NOT KITH_NCCL STREQUAL AUTO AND kith_no_nccl)
  message(FATAL_ERROR "KITH_NCCL is ${KITH_NCCL}, but ${kith_no_nccl}")
endif()
