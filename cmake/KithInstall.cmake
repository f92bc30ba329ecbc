# SPDX-License-Identifier: Apache-2.0
# The installed package: headers, the CMake package and the pkg-config file. Header-only means the same files for every
# architecture, so they go to share/, not to a library folder.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(kith_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/kith)
install(TARGETS kith EXPORT kithTargets FILE_SET HEADERS)
install(EXPORT kithTargets NAMESPACE kith:: DESTINATION ${kith_package_dir})
# A component's targets have a file of their own, read only where what they link was found.
foreach(component IN ITEMS Mpi Cuda Nccl)
  string(TOLOWER ${component} target)
  install(TARGETS kith_${target} EXPORT kith${component}Targets)
  install(EXPORT kith${component}Targets NAMESPACE kith:: DESTINATION ${kith_package_dir})
endforeach()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/kithConfig.cmake.in ${PROJECT_BINARY_DIR}/kithConfig.cmake
  INSTALL_DESTINATION ${kith_package_dir} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a new minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kithConfigVersion.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/kithConfig.cmake ${PROJECT_BINARY_DIR}/kithConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/FindNCCL.cmake
  DESTINATION ${kith_package_dir})

configure_file(${PROJECT_SOURCE_DIR}/cmake/kith.pc.in ${PROJECT_BINARY_DIR}/kith.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kith.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
