# lpcd_module(NAME [ARITHMETIC] SOURCES a.cpp ... TESTS a_test.cpp ... DEPENDS base tensor ... LIBRARIES x ...)
#
# One folder of lpcd/ as an object library `lpcd_NAME` that is linked only to the folders it may
# include, plus its unit tests as `lpcd_tests_NAME`. A .cpp file in the folder that is named in
# neither list is an error, so that nothing is left out of the build by accident. ARITHMETIC: the time
# of a run is spent here, so that it is optimised in builds with sanitizers too, where the rest is not:
# with them, optimising takes the compiler twice as long.
function(lpcd_module name)
  cmake_parse_arguments(ARG "ARITHMETIC" "" "SOURCES;TESTS;DEPENDS;LIBRARIES" ${ARGN})

  file(GLOB present RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS *.cpp)
  foreach(file IN LISTS present)
    if(NOT file IN_LIST ARG_SOURCES AND NOT file IN_LIST ARG_TESTS)
      message(FATAL_ERROR "lpcd/${name}/${file} is in neither SOURCES nor TESTS of its CMakeLists.txt")
    endif()
  endforeach()

  add_library(lpcd_${name} OBJECT ${ARG_SOURCES})
  target_link_libraries(lpcd_${name} PRIVATE lpcd_build_flags)
  if(ARG_ARITHMETIC AND LPCD_SANITIZE)
    target_compile_options(lpcd_${name} PRIVATE -O1)
    # Highway has a file include itself, once for every kind of CPU.
    set_target_properties(lpcd_${name} PROPERTIES UNITY_BUILD OFF)
  endif()
  foreach(dependency IN LISTS ARG_DEPENDS)
    target_link_libraries(lpcd_${name} PUBLIC lpcd_${dependency})
  endforeach()
  target_link_libraries(lpcd_${name} PUBLIC ${ARG_LIBRARIES})
  set_property(GLOBAL APPEND PROPERTY LPCD_MODULES ${name})

  if(LPCD_BUILD_TESTS AND ARG_TESTS)
    set_property(GLOBAL APPEND PROPERTY LPCD_TEST_MODULES ${name})
    list(TRANSFORM ARG_TESTS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
    set_property(GLOBAL PROPERTY LPCD_TESTS_${name} ${ARG_TESTS})
  endif()
endfunction()

# lpcd_add_unit_tests(): one executable per module with tests, discovered by ctest, label `unit`.
function(lpcd_add_unit_tests)
  get_property(modules GLOBAL PROPERTY LPCD_TEST_MODULES)
  foreach(name IN LISTS modules)
    get_property(sources GLOBAL PROPERTY LPCD_TESTS_${name})
    add_executable(lpcd_tests_${name} ${sources})
    target_link_libraries(lpcd_tests_${name} PRIVATE lpcd_static lpcd_test_support lpcd_build_flags)
    gtest_discover_tests(lpcd_tests_${name} TEST_PREFIX "${name}/" DISCOVERY_TIMEOUT 60
      PROPERTIES LABELS unit TIMEOUT 300 ENVIRONMENT ${LPCD_TEST_ENVIRONMENT})
  endforeach()
endfunction()
