#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "lpcd/linalg/blas.h"

namespace {

// As the command does: old kernels on a new CPU would make the tests several times slower.
void use_best_blas_kernels(char** argv) {
  const std::string core = lpcd::linalg::better_openblas_core();
  if (core.empty() || std::getenv("OPENBLAS_CORETYPE") != nullptr) return;
  setenv("OPENBLAS_CORETYPE", core.c_str(), 1);
  execv("/proc/self/exe", argv);
}

}  // namespace

int main(int argc, char** argv) {
  use_best_blas_kernels(argv);
  testing::InitGoogleTest(&argc, argv);
  lpcd::linalg::use_single_threaded_blas();
  return RUN_ALL_TESTS();
}
