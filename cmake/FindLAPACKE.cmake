# The C interfaces of BLAS and LAPACK: cblas.h and lapacke.h with the library behind LAPACKE.
# Any vendor's will do; set LAPACKE_LIBRARY and CBLAS_INCLUDE_DIR to choose.
find_path(CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas cblas)
find_path(LAPACKE_INCLUDE_DIR lapacke.h PATH_SUFFIXES lapacke openblas)
find_library(LAPACKE_LIBRARY NAMES lapacke)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LAPACKE
  REQUIRED_VARS LAPACKE_LIBRARY LAPACKE_INCLUDE_DIR CBLAS_INCLUDE_DIR)

if(LAPACKE_FOUND AND NOT TARGET LAPACKE::LAPACKE)
  add_library(LAPACKE::LAPACKE UNKNOWN IMPORTED)
  set_target_properties(LAPACKE::LAPACKE PROPERTIES
    IMPORTED_LOCATION ${LAPACKE_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES "${LAPACKE_INCLUDE_DIR};${CBLAS_INCLUDE_DIR}")
endif()
mark_as_advanced(CBLAS_INCLUDE_DIR LAPACKE_INCLUDE_DIR LAPACKE_LIBRARY)
