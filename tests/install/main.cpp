#include <lpcd/lpcd.h>

#include <cstdio>

// Inspects the model it is given, and meets the library's one exception type.
int main(int argc, char** argv) {
  try {
    std::printf("lpcd %s\n%s", lpcd::version().c_str(),
                lpcd::inspect(argc > 1 ? argv[1] : "/nonexistent").summary.c_str());
    return 0;
  } catch (const lpcd::Error& error) {
    std::printf("%s\n", error.what());
    return error.code() == lpcd::ErrorCode::kFileNotFound ? 42 : 1;
  }
}
