#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/pipeline/block_runner.h"

namespace lpcd::pipeline {

/// Bumped whenever the bytes of a result change for the same input and options.
constexpr int kNumericsVersion = 11;

/// The state of a run on disk, in DIR/.lpcd: one atomic commit per block.
///
///   run.json                     fingerprint, options, what the run is about
///   sample.json                  text that the model writes for itself, while it does
///   calibration.safetensors      the token ids
///   blocks/00012/layers.safetensors   codes, scales and zeros of the block's layers
///   blocks/00012/record.json     what happened, and the hash of layers.safetensors; written last:
///                                a block without it does not exist
///   state.bin                    the residual streams after some committed block
///
/// A crash at any moment leaves block n committed or not, never half. The streams are saved less
/// often than blocks when they are large; resuming recomputes what lies between, to the same bits.
class Journal {
 public:
  /// Looks at DIR/.lpcd without changing anything.
  explicit Journal(std::string directory);

  [[nodiscard]] bool exists() const;
  /// Starts a new run. Errors: kWriteFailed.
  void create(const Json& run);
  /// run.json. Errors: kBadFile if it is not what create() wrote.
  [[nodiscard]] Json read_run() const;
  /// Replaces run.json.
  void update_run(const Json& run);

  void save_calibration(const calib::Dataset& data);
  [[nodiscard]] bool has_calibration() const;
  [[nodiscard]] calib::Dataset load_calibration() const;

  /// Keeps text that a model is writing for itself, before there is a run: all ids so far, under a
  /// key of what they depend on.
  void save_sample(const std::string& key, std::span<const int32_t> ids);
  /// What was kept under that key; empty if nothing was, or if it is damaged.
  [[nodiscard]] std::vector<int32_t> load_sample(const std::string& key) const;
  /// Removes what a run that died before it began has left, but for the text it has written.
  void clear();

  [[nodiscard]] bool has_block(int64_t block) const;
  /// Number of blocks committed, counted from the first up to one that is not.
  [[nodiscard]] int64_t committed_blocks() const;
  void commit_block(int64_t block, const QuantizedLayers& layers,
                    const std::vector<LayerPlan>& plan, const Json& record);
  /// Errors    kBadFile if the stored layers are not those that were committed (hash).
  [[nodiscard]] QuantizedLayers read_block(int64_t block) const;
  [[nodiscard]] Json read_record(int64_t block) const;

  /// Saves the streams as they are after `blocks` blocks.
  void save_state(int64_t blocks, const Streams& streams);
  /// Loads the streams into stores of the right shape; the number of blocks they are after, or
  /// nothing if there is no state.
  [[nodiscard]] std::optional<int64_t> load_state(Streams& streams) const;
  /// Removes temporary files that a killed process left in it.
  void remove_temporaries() const;
  /// Removes the streams and the text of a finished run.
  void remove_state();

  /// DIR/.lpcd: also the place for temporary stores.
  [[nodiscard]] const std::string& directory() const { return directory_; }

 private:
  [[nodiscard]] std::string block_directory(int64_t block) const;

  std::string directory_;
};

/// The grid in an entry of a block record's "stored".
[[nodiscard]] format::GridSpec stored_grid(const JsonFields& layer);

/// Throws kResumeMismatch naming every field in which the two fingerprints differ.
void check_same_fingerprint(const Json& stored, const Json& current);

}  // namespace lpcd::pipeline
