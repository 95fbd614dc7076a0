#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "lpcd/arch/block_forward.h"
#include "lpcd/calib/activations.h"
#include "lpcd/calib/statistics.h"
#include "lpcd/pipeline/plan.h"
#include "lpcd/pipeline/site_moments.h"
#include "lpcd/report/record.h"
#include "lpcd/solve/output_feedback.h"
#include "lpcd/submodules/relax.h"

namespace lpcd::pipeline {

/// The residual streams between two blocks: what the original and the quantized model have computed
/// so far. A stream that the plan does not need is empty.
struct Streams {
  calib::ActivationStore original;   ///< X_f [T, D]
  calib::ActivationStore quantized;  ///< X_q [T, D]
  /// The original's output of the half block in work [T, D]; only where both streams are carried.
  calib::ActivationStore target;
  bool equal = false;  ///< X_q = X_f, as before the first block

  /// The stream whose inputs the metric H is made of.
  [[nodiscard]] calib::ActivationStore& primary() {
    return quantized.empty() ? original : quantized;
  }
};

using QuantizedLayers = std::map<arch::Role, format::QuantizedMatrix>;

/// Quantizes one block: both streams go through its stages once, side by side; at each input the
/// statistics are collected, the layers that read it are solved and projected, submodules of
/// several layers are relaxed, and only then the quantized stream moves on.
///
/// Memory    two copies of the block's weights, the moments of one input, the temporaries of one
///           chunk, and the stores that the plan keeps.
class BlockRunner {
 public:
  /// `advanced(flops)` is called as arithmetic is done, for the progress display.
  BlockRunner(const RunContext& ctx, const Plan& plan, const arch::ModelConfig& config,
              const arch::BlockForward& forward, const std::string& scratch_directory,
              std::function<void(std::string_view item, double flops)> advanced);

  /// Called for every layer once it is solved, and again by later cycles: its role, its codes, and
  /// the decoded weights that the quantized stream goes on with, which may be replaced (by known
  /// ones, to compare layer by layer).
  using LayerObserver =
      std::function<void(arch::Role, const format::QuantizedMatrix&, Mat& decoded)>;
  void set_layer_observer(LayerObserver observer) { observer_ = std::move(observer); }

  /// `original` is used up. On return both streams hold the block's output.
  QuantizedLayers run(int64_t block, arch::BlockWeights original, Streams& streams,
                      report::BlockRecord& record);

 private:
  /// What one layer of a site came to.
  struct Solution {
    Mat target;  // before projection
    format::QuantizedMatrix quantized;
    double damping = 0;  // relative, chosen
    int attempts = 0;    // targets that were projected
  };

  void attention_input();
  void attention_output();
  void ffn_input();
  void ffn_output();
  void block_output();
  /// The layer that closes a half block, from moments of what the layers before it came to.
  /// `before`: its codes of the cycle before, which another one may keep or go on from.
  void solve_attention_output(const format::QuantizedMatrix* before = nullptr);
  void solve_ffn_output(const format::QuantizedMatrix* before = nullptr);
  /// z_q and u_q of rows [r0, r0 + n) with the layers as they are, kept for the stages to come
  /// where the plan keeps them; and of all rows.
  FloatView mix(int64_t r0, int64_t n);
  FloatView activate(int64_t r0, int64_t n);
  void mix_again();
  void activate_again();

  /// Writes what the original makes of the half block.
  void write_target(submodules::Part part, int64_t r0, ConstView y_f);
  /// Weight of every token's error beside the one relative to its size.
  [[nodiscard]] double face_value_weight() const;
  /// Hands the weights of the tokens of a chunk to the sums of a layer that ends on the residual
  /// stream.
  void weigh_tokens(SiteMoments& moments, int64_t r0, int64_t n,
                    std::span<const float> y_q_energies = {});
  /// y_q = x_q + u_q Wdown^T with the original's Wdown, in yq_.   x_q [t, D], u_q [t, F].
  [[nodiscard]] FloatView ffn_output_of(ConstView x_q, ConstView u_q);
  /// Its |y_q,t|^2 for all tokens, with gate and up as solved so far.
  [[nodiscard]] std::vector<float> ffn_energies();
  /// Moments of the primary stream (and what is missing) at the input of a site.
  [[nodiscard]] SiteMoments start_moments(Site site) const;
  /// Solves and projects the layers that read one input, and puts their decoded weights into the
  /// quantized block.
  void solve_site(Site site, SiteMoments moments, const format::QuantizedMatrix* before = nullptr);
  Solution solve_layer(const LayerPlan& layer, const submodules::LayerProblem& problem, Mat& h,
                       report::LayerRecord& record, const format::QuantizedMatrix* before);
  /// Relaxes the coupled submodules of one half of the block, whose layers solve_site has solved
  /// one by one, and keeps what is better on held-out sequences.
  void descend(submodules::Half half);
  /// body(the sequences around a half block, where to say what is being done with them)
  void visit(submodules::Half half,
             const std::function<void(const submodules::SequenceSource&, std::string&)>& body);
  void descend_on(const submodules::CoupledInfo& info, const submodules::SequenceSource& source);
  /// Whether the layer is another one now.
  bool relax_layer(const submodules::CoupledInfo& info, const submodules::Coupled& coupled,
                   const submodules::SequenceSource& source, const submodules::Energies& energies,
                   arch::Role role, const format::QuantizedMatrix& layerwise, int cycle);
  /// Rolls the layers of a submodule back where together they are worse than `layerwise`.
  void judge_together(const submodules::CoupledInfo& info, const submodules::Coupled& coupled,
                      const submodules::SequenceSource& source,
                      const submodules::Energies& energies, const QuantizedLayers& layerwise);
  /// Cycles over the layers of a submodule before the pipeline goes on.
  [[nodiscard]] int cycles_at_once(const submodules::CoupledInfo& info) const;
  /// Submodules of one half that are relaxed again once the layer that closes them is solved.
  [[nodiscard]] std::vector<const submodules::CoupledInfo*> repeated(submodules::Half half) const;
  /// Relaxes them again, and solves the closing layer again, as long as the half block's held-out
  /// error falls.
  void repeat_cycles(submodules::Half half);
  bool repeat_cycle(submodules::Half half, int cycle);
  bool relax_again(const submodules::CoupledInfo& info, const submodules::SequenceSource& source,
                   int cycle, double& flops);
  void relax_as_reference(const submodules::CoupledInfo& info, const submodules::Coupled& coupled,
                          const submodules::SequenceSource& source,
                          const submodules::Energies& energies, arch::Role role);
  [[nodiscard]] submodules::AdamOptions adam_options() const;
  /// The sequences on which a relaxation has to be better than its baseline.
  [[nodiscard]] submodules::Part judging_part() const;
  /// A coupled submodule will relax the layer.
  [[nodiscard]] bool relaxed_later(arch::Role role) const;
  /// What is left to do with a layer that is done: record and observer.
  void settle(arch::Role role);

  /// Rows [r0, r0 + n) of the primary stream after the attention norm, in aq_.
  [[nodiscard]] FloatView primary_attention_norm(int64_t r0, int64_t n);
  [[nodiscard]] format::QuantizedMatrix project(const LayerPlan& layer, ConstView target,
                                                const solve::Metric& metric,
                                                const solve::OutputMetric* outputs = nullptr) const;
  [[nodiscard]] linalg::Damping damping_of(double fraction) const;
  [[nodiscard]] solve::Metric metric_of(Mat h, double damping) const;
  /// body(part, first row, rows)
  template <typename Body>
  void for_chunks(const Body& body);
  /// Shows what is being worked on, and counts FLOPs that a stage is through with before it ends.
  void working(std::string_view item, double flops = 0);
  /// Books the time of `work` and the FLOPs it returns.
  void timed(const char* stage, const std::function<double()>& work);

  [[nodiscard]] bool both_streams() const {
    return plan_.original_stream && plan_.quantized_stream;
  }
  [[nodiscard]] const arch::BlockWeights& primary_weights() const {
    return plan_.quantized_stream ? quantized_ : original_;
  }
  [[nodiscard]] const char* primary_stage() const;

  const RunContext& ctx_;
  const Plan& plan_;
  const arch::ModelConfig& config_;
  const arch::BlockForward& forward_;
  std::string scratch_directory_;
  std::function<void(std::string_view, double)> advanced_;
  double reported_ = 0;  // FLOPs of the stage in work that working() has counted
  LayerObserver observer_;

  // of the block in work
  int64_t block_ = 0;
  arch::BlockWeights original_;
  arch::BlockWeights quantized_;  // layers that are not solved yet are empty
  Streams* streams_ = nullptr;
  report::BlockRecord* record_ = nullptr;
  double target_energy_ = 0;  // |y_f|^2 of the half block in work, tokens that are solved on
  QuantizedLayers layers_;
  std::map<arch::Role, report::LayerRecord> records_;
  // Of layers that a coupled submodule will visit: the target of the layer-wise solution, its
  // damping, and the moments of the inputs they share.
  std::map<arch::Role, Mat> targets_;
  std::map<arch::Role, double> dampings_;
  Mat site_h_;
  // What later cycles need of the first one, where there are any: the moments of the inputs, and
  // the layer-wise solutions.
  struct {
    Mat h;
    QuantizedLayers layerwise;
    submodules::SquaredSum errors;  // of the half block
  } first_cycle_;
  calib::ActivationStore attention_out_;  // z_q [T, Hq d]
  calib::ActivationStore ffn_out_;        // u_q [T, F], if kept
  // buffers of one chunk, reused
  Mat xf_, xq_, af_, aq_, zf_, zq_, uf_, uq_, yq_, r_;
};

/// Quantizes a block from its weights alone, for plans that need no calibration.
[[nodiscard]] QuantizedLayers quantize_without_inputs(const RunContext& ctx, const Plan& plan,
                                                      int64_t block,
                                                      const arch::BlockWeights& weights,
                                                      report::BlockRecord& record);

/// Sweeps over what a projection has left. RTN has none.
[[nodiscard]] int refine_sweeps(const Plan& plan);
/// How a layer of the plan is put on its grid.
[[nodiscard]] solve::ProjectOptions project_options(const Plan& plan, const LayerPlan& layer);

}  // namespace lpcd::pipeline
