#include "lpcd/io/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

#include "lpcd/io/system_error.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TemporaryDirectory;

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, ShowsTheBytesAndMoves) {
  const TemporaryDirectory dir;
  write_file(dir / "a", "hello");
  write_file(dir / "b", "world!");
  MappedFile a(dir / "a");
  EXPECT_EQ(text_of(a), "hello");
  EXPECT_EQ(a.path(), dir / "a");
  MappedFile b(dir / "b");
  b = std::move(a);
  EXPECT_EQ(text_of(b), "hello");
  const MappedFile c(std::move(b));
  EXPECT_EQ(text_of(c), "hello");
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TemporaryDirectory dir;
  write_file(dir / "empty", "");
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  const auto open = [](const std::string& path) { return [path] { MappedFile file(path); }; };
  expect_error(open(dir / "gone"), ErrorCode::kFileNotFound, "gone: cannot open: No such file");
  expect_error(open(dir / "empty/x"), ErrorCode::kFileNotFound, "Not a directory");
  expect_error(open(dir.path()), ErrorCode::kReadFailed, "is a directory");
  expect_error(open(dir / "pipe"), ErrorCode::kReadFailed, "is not a regular file");
  expect_error(open(dir / "empty"), ErrorCode::kBadFile, "the file is empty");
}

/// Pages of this process that are backed by files.
std::optional<long> shared_pages() {
  std::ifstream statm("/proc/self/statm");
  long size = 0;
  long resident = 0;
  long shared = 0;
  if (!(statm >> size >> resident >> shared)) return std::nullopt;
  return shared;
}

TEST(MappedFile, DropGivesWholePagesBackAndKeepsTheBytes) {
  const TemporaryDirectory dir;
  constexpr size_t kBytes = (8 << 20) + 123;
  std::string text(kBytes, 'x');
  text[0] = 'a';
  text[kBytes - 1] = 'z';
  write_file(dir / "f", text);
  const MappedFile file(dir / "f");
  ASSERT_EQ(text_of(file), text);
  const std::optional<long> before = shared_pages();
  file.drop(0, kBytes);
  if (const std::optional<long> after = shared_pages(); before && after) {
    EXPECT_LE(*after, *before - (7 << 20) / ::sysconf(_SC_PAGESIZE));
  }
  EXPECT_EQ(text_of(file), text);
  file.drop(1, kBytes - 2);
  file.drop(100, 50);
  file.drop(kBytes, 1);
  file.drop(5, ~uint64_t{0});
  file.drop(~uint64_t{0}, ~uint64_t{0});
  EXPECT_EQ(text_of(file), text);
}

TEST(ReadTextFile, ReadsUpToTheLimit) {
  const TemporaryDirectory dir;
  write_file(dir / "f", "12345");
  write_file(dir / "empty", "");
  EXPECT_EQ(read_text_file(dir / "f", 5), "12345");
  EXPECT_EQ(read_text_file(dir / "f", ~uint64_t{0}), "12345");
  EXPECT_EQ(read_text_file(dir / "empty", 0), "");
  EXPECT_EQ(read_file_start(dir / "f", 3), "123");
  EXPECT_EQ(read_file_start(dir / "f", 9), "12345");
  expect_error([&] { (void)read_text_file(dir / "f", 4); }, ErrorCode::kBadFile,
               "larger than the 4 bytes");
  expect_error([&] { (void)read_text_file(dir / "gone", 4); }, ErrorCode::kFileNotFound, "gone");
  expect_error([&] { (void)read_text_file(dir.path(), 4); }, ErrorCode::kReadFailed, "directory");
  if (fs::exists("/proc/self/status")) {  // a file that claims to be empty
    EXPECT_NE(read_text_file("/proc/self/status", 1 << 20).find("Pid:"), std::string::npos);
  }
}

TEST(AtomicFile, AppearsWholeAndOnlyOnCommit) {
  const TemporaryDirectory dir;
  write_file(dir / "f", "old");
  AtomicFile file(dir / "f");
  file.write("new ");
  file.write(std::as_bytes(std::span("text", 4)));
  EXPECT_EQ(file.size(), 8U);
  EXPECT_EQ(read_text_file(dir / "f", 100), "old");
  AtomicFile moved(std::move(file));
  moved.write("!");
  moved.sync();
  EXPECT_EQ(read_text_file(dir / "f", 100), "old");
  AtomicFile again(std::move(moved));
  again.commit();
  EXPECT_EQ(read_text_file(dir / "f", 100), "new text!");
  EXPECT_EQ(dir.entries(), std::vector<std::string>{"f"});
}

TEST(AtomicFile, LeavesNothingBehindWhenAbandoned) {
  const TemporaryDirectory dir;
  {
    AtomicFile a(dir / "f");
    AtomicFile b(dir / "f");  // two at once do not get into each other's way
    a.write("a");
    b.write("b");
    EXPECT_EQ(dir.entries().size(), 2U);
  }
  EXPECT_TRUE(dir.entries().empty());
}

TEST(AtomicFile, HasTheModeOfAnyNewFile) {
  const TemporaryDirectory dir;
  const mode_t mask = ::umask(027);
  write_file(dir / "f", "x");
  ::umask(mask);
  EXPECT_EQ(fs::status(dir / "f").permissions(), static_cast<fs::perms>(0640));
}

TEST(AtomicFile, SaysWhyItCannotWrite) {
  const TemporaryDirectory dir;
  write_file(dir / "file", "x");
  expect_error([&] { write_file(dir / "gone/f", "x"); }, ErrorCode::kWriteFailed,
               "gone/f: cannot create: No such file or directory");
  expect_error([&] { write_file(dir / "file/f", "x"); }, ErrorCode::kWriteFailed,
               "Not a directory");
  expect_error([&] { write_file(dir.path() + "/", "x"); }, ErrorCode::kWriteFailed,
               "is not the name of a file");
  make_directories(dir / "taken");
  write_file(dir / "taken/x", "");
  expect_error([&] { write_file(dir / "taken", "x"); }, ErrorCode::kWriteFailed,
               "cannot put the finished file in place");
  if (fs::is_directory("/proc/self")) {
    EXPECT_THROW(write_file("/proc/self/lpcd", "x"), Error);
  }
  EXPECT_EQ(dir.entries(), (std::vector<std::string>{"file", "taken"}));
}

TEST(AtomicFile, ReadOnlyDirectoryIsAnErrorWithARemedy) {
  const TemporaryDirectory dir;
  make_directories(dir / "locked");
  fs::permissions(dir / "locked", fs::perms::owner_read | fs::perms::owner_exec);
  if (::access((dir / "locked").c_str(), W_OK) == 0) {
    GTEST_SKIP() << "this user may write anywhere";
  }
  expect_error([&] { write_file(dir / "locked/f", "x"); }, ErrorCode::kWriteFailed,
               "Permission denied; check the permissions");
}

TEST(AtomicFile, AWriteThatStopsHalfwayIsReportedAndCleanedUp) {
  // A limit on the file size stands for the full disk: the kernel takes a part, then refuses.
  const TemporaryDirectory dir;
  struct rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 100'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::optional<AtomicFile> file(dir / "f");
  expect_error([&] { file->write(std::string(150'000, 'x')); }, ErrorCode::kWriteFailed,
               "f: cannot write: File too large");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  (void)std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(dir.entries().empty());
  expect_error([&] { file->commit(); }, ErrorCode::kInternal, "fd_");
}

TEST(SystemError, HasReasonAndRemedy) {
  expect_error([] { raise_system_error(ErrorCode::kWriteFailed, "out/f", "write", ENOSPC); },
               ErrorCode::kWriteFailed,
               "out/f: cannot write: No space left on device; free some space");
  expect_error([] { raise_read_error("f", "open", EACCES); }, ErrorCode::kReadFailed,
               "Permission denied; check the permissions");
  expect_error([] { raise_read_error("f", "open", EMFILE); }, ErrorCode::kReadFailed, "ulimit -n");
}

TEST(Directories, AreMadeWithTheirParents) {
  const TemporaryDirectory dir;
  make_directories(dir / "a/b/c");
  make_directories(dir / "a/b/c");
  make_directories(dir / "a/d/");
  EXPECT_TRUE(fs::is_directory(dir / "a/b/c"));
  EXPECT_TRUE(fs::is_directory(dir / "a/d"));
  write_file(dir / "file", "x");
  expect_error([&] { make_directories(dir / "file"); }, ErrorCode::kWriteFailed, "File exists");
  expect_error([&] { make_directories(dir / "file/x"); }, ErrorCode::kWriteFailed, "file");
  expect_error([] { make_directories(""); }, ErrorCode::kWriteFailed, "cannot create");
}

TEST(Directories, TellTheFreeSpace) {
  const TemporaryDirectory dir;
  EXPECT_GT(free_disk_bytes(dir.path()), 0U);
  expect_error([&] { (void)free_disk_bytes(dir / "gone"); }, ErrorCode::kFileNotFound, "gone");
}

TEST(DirectoryLock, IsExclusiveAndLeavesNoFile) {
  const TemporaryDirectory dir;
  {
    const DirectoryLock lock(dir.path());
    expect_error([&] { DirectoryLock second(dir.path()); }, ErrorCode::kLocked,
                 "another process works in this directory");
  }
  EXPECT_TRUE(dir.entries().empty());
  {
    const DirectoryLock again(dir.path());
  }
  expect_error([&] { DirectoryLock none(dir / "gone"); }, ErrorCode::kWriteFailed,
               "No such file or directory");
}

// Thousands of shards may wait for their commit.
TEST(AtomicFile, HoldsNoDescriptorBetweenSyncAndCommit) {
  const TemporaryDirectory dir;
  const auto open_files = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const auto before = open_files();
  {
    std::vector<AtomicFile> files;
    for (int i = 0; i < 8; ++i) {
      files.emplace_back(dir / std::to_string(i));
      files.back().write("x");
      files.back().sync();
    }
    EXPECT_EQ(open_files(), before);
    files.front().commit();
  }
  EXPECT_EQ(dir.entries(), std::vector<std::string>{"0"});
}

/// Runs `body` in a child that then waits; returns its id once the body is through.
template <typename Body>
pid_t child_after(Body&& body) {
  int ready[2];
  EXPECT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    (void)!::write(ready[1], "x", 1);
    while (true) ::pause();
  }
  char byte = 0;
  EXPECT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  return child;
}

void kill_child(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST(DirectoryLock, EndsWithAKilledProcess) {
  const TemporaryDirectory dir;
  const pid_t child = child_after([&] { new DirectoryLock(dir.path()); });
  expect_error([&] { DirectoryLock lock(dir.path()); }, ErrorCode::kLocked, "another process");
  kill_child(child);
  EXPECT_EQ(dir.entries(), std::vector<std::string>{".lpcd-lock"});
  {
    const DirectoryLock lock(dir.path());
  }
  EXPECT_TRUE(dir.entries().empty());
}

TEST(AtomicFile, WhatAKilledProcessLeavesCanBeRemoved) {
  const TemporaryDirectory dir;
  write_file(dir / "model.safetensors", "old");
  write_file(dir / ".hidden", "kept");
  kill_child(child_after([&] { (new AtomicFile(dir / "model.safetensors"))->write("half"); }));
  EXPECT_EQ(dir.entries().size(), 3U);
  EXPECT_EQ(read_text_file(dir / "model.safetensors", 100), "old");
  remove_temporaries(dir.path());
  EXPECT_EQ(dir.entries(), (std::vector<std::string>{".hidden", "model.safetensors"}));
  expect_error([&] { remove_temporaries(dir / "gone"); }, ErrorCode::kWriteFailed, "gone");
}

}  // namespace
}  // namespace lpcd::io
