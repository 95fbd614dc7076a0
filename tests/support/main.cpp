#include <gtest/gtest.h>

#include "lpcd/linalg/blas.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  lpcd::linalg::use_single_threaded_blas();
  return RUN_ALL_TESTS();
}
