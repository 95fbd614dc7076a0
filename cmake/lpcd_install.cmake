# What an outside project gets: find_package(lpcd), lpcd::lpcd, #include <lpcd/lpcd.h>.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The public headers name no third-party type.
set(LPCD_PUBLIC_HEADERS
  lpcd/lpcd.h lpcd/base/context.h lpcd/base/error.h lpcd/base/options.h lpcd/pipeline/options.h)
foreach(header IN LISTS LPCD_PUBLIC_HEADERS)
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES ${PROJECT_SOURCE_DIR}/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/${folder})
endforeach()

install(TARGETS lpcd_shared EXPORT lpcdTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT lpcdTargets NAMESPACE lpcd:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpcd)
if(TARGET lpcd_cli)
  install(TARGETS lpcd_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/lpcd-config.cmake.in
  ${PROJECT_BINARY_DIR}/lpcd-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpcd)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/lpcd-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/lpcd-config.cmake ${PROJECT_BINARY_DIR}/lpcd-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpcd)
