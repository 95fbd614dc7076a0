# Compile flags of our own targets; nothing of this reaches a consumer.
add_library(lpcd_build_flags INTERFACE)
target_include_directories(lpcd_build_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(lpcd_build_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor
  -Wno-missing-field-initializers  # designated initializers leave fields at their defaults
  # Results must not depend on whether the compiler contracts a*b+c: kernels ask for FMA by name.
  -ffp-contract=off)
if(LPCD_WERROR)
  target_compile_options(lpcd_build_flags INTERFACE -Werror)
endif()
if(LPCD_NATIVE)
  target_compile_options(lpcd_build_flags INTERFACE -march=native)
endif()
if(LPCD_SANITIZE)
  target_compile_options(lpcd_build_flags INTERFACE
    -fsanitize=${LPCD_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(lpcd_build_flags INTERFACE -fsanitize=${LPCD_SANITIZE})
endif()
