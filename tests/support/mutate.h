#pragma once

#include <random>
#include <string>
#include <string_view>

namespace lpcd::testing {

/// A damaged copy of `seed`: one to four random changes of bytes, numbers, length or order. The
/// same generator state gives the same bytes on every system. Half of the changes fall into the
/// first `hot_bytes`, where headers are.
[[nodiscard]] std::string mutate(const std::string& seed, size_t hot_bytes, std::mt19937& random);

/// Writes a file without the syncs of io::write_file, which thousands of small files would wait
/// for.
void put_file(const std::string& path, std::string_view bytes);

/// Largest resident size of this process so far, in bytes.
[[nodiscard]] size_t peak_resident_bytes();

/// Fails the test if the process has grown by more than 64 MiB since the peak was `before`: more
/// than any small damaged file may cost. Does nothing under AddressSanitizer, which keeps memory.
void expect_modest_growth(size_t before);

}  // namespace lpcd::testing
