#pragma once

#include <array>
#include <optional>

#include "lpcd/calib/statistics.h"
#include "lpcd/pipeline/plan.h"

namespace lpcd::pipeline {

/// Everything that is summed over the calibration tokens at one input of a block, once for the
/// sequences that weights are solved on and once for those held out.
class SiteMoments {
 public:
  /// Shapes    layers of `outputs` outputs and `inputs` inputs.
  SiteMoments(int64_t outputs, int64_t inputs, submodules::CrossMoments cross);

  [[nodiscard]] bool wants_original_input() const { return cross_.input; }
  [[nodiscard]] bool wants_missing_output() const {
    return cross_.output != submodules::CrossMoments::Output::kNone;
  }
  [[nodiscard]] submodules::CrossMoments::Output output() const { return cross_.output; }

  /// Weights of the tokens of the chunk that is added next [t]; see submodules::token_weights().
  void set_weights(std::vector<float> weights) { weights_ = std::move(weights); }

  /// Each add returns the FLOPs it took; x_f is looked at only if it is wanted. add_missing() comes
  /// after add_inputs() of the same chunk.
  double add_inputs(const RunContext& ctx, submodules::Part part, ConstView x_f, ConstView x_q,
                    int64_t slab);
  double add_missing(const RunContext& ctx, submodules::Part part, ConstView missing, ConstView y_f,
                     ConstView x_q, int64_t slab);

  /// The sums of one part, scaled.
  struct Finished {
    Mat h;
    Mat cross_input;
    Mat cross_output;
    double missing_energy = -1;
    double output_energy = -1;

    [[nodiscard]] submodules::LayerMoments view() const {
      return {.h = h,
              .cross_input = cross_input,
              .cross_output = cross_output,
              .missing_energy = missing_energy,
              .output_energy = output_energy};
    }
  };
  /// Empty matrices if the part had no tokens.
  [[nodiscard]] Finished finish(const RunContext& ctx, submodules::Part part);

 private:
  struct Sums {
    std::optional<calib::GramAccumulator> h;
    std::optional<calib::CrossAccumulator> input;
    std::optional<calib::CrossAccumulator> output;
    double missing_energy = 0;  // sum of w |r|^2
    double output_energy = 0;   // sum of w |y_f|^2
    int64_t tokens = 0;
  };
  Sums& sums(submodules::Part part) { return parts_[static_cast<size_t>(part)]; }

  // x times the roots of the weights, in `buffer`; x itself if there are none
  ConstView weighted(const RunContext& ctx, ConstView x, Mat& buffer) const;

  int64_t outputs_;
  int64_t inputs_;
  submodules::CrossMoments cross_;
  std::array<Sums, 2> parts_;
  std::vector<float> weights_;
  Mat difference_;
  Mat weighted_;  // x_q times the roots of the weights
  Mat missing_;
};

}  // namespace lpcd::pipeline
