#include <filesystem>
#include <map>

#include "lpcd/api/boundary.h"
#include "lpcd/api/consumers.h"
#include "lpcd/api/machine.h"
#include "lpcd/api/output.h"
#include "lpcd/base/clock.h"
#include "lpcd/base/control_group.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/hf_directory.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/calib/self_sample.h"
#include "lpcd/io/file.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/run.h"

namespace lpcd {
namespace {

namespace fs = std::filesystem;

constexpr int kRecordSchema = 1;
constexpr uint64_t kMaxRecordBytes = 1ULL << 32;  // far above what the largest model writes

// One call of quantize(), in the order of the work.
class QuantizeJob {
 public:
  QuantizeJob(const QuantizeOptions& options, const RunContext& ctx)
      : ctx_(api::prepared(ctx, options.threads)),
        options_(options),
        formats_(api::resolve_formats(options_)),
        model_(bundle::open_model(options_.model)),
        max_shard_bytes_(parse_bytes(options_.shard_size, "shard-size")),
        journal_(options_.out) {
    normalize();
    ctx_.split_products = options_.matmul_precision == MatmulPrecision::kHigh;
    plan_ = pipeline::make_plan(model_, options_, available_memory(), goes_on_with_ids());
    const bool tokenizes = plan_.needs_calibration && !options_.calib.ends_with(".safetensors");
    const bool directory = std::ranges::any_of(formats_, [](const auto& format) {
      return format->container() == format::Container::kSafetensors;
    });
    tokenizer_ = tokenizes ? bundle::open_tokenizer(model_)
                           : api::tokenizer_to_copy(ctx_, model_, directory);
    api::check_formats(model_, plan_, formats_);
    api::check_consumer(options_.consumer, model_, plan_, formats_);
    for (const auto& format : formats_) plan_.disk_bytes += output_bytes(*format);
    for (const auto& format : formats_) {
      if (api::warn_of_gguf(ctx_, model_, *format)) break;  // the same for all
    }
  }

  QuantizeResult run() {
    QuantizeResult result;
    check_calibration_source();
    rate_ = linalg::measure_gemm_rate(ctx_);
    pipeline::MachineSpeed speed{.flops_per_second = rate_};
    const bool rereads = plan_.sampling && !plan_.sampling_keeps_weights;
    if (rereads) speed.read_seconds = seconds_to_read_blocks();
    result.plan = pipeline::describe(plan_, speed);
    Json json = pipeline::to_json(plan_, speed);
    json["bits_per_weight"] = bits_per_weight();
    for (const auto& format : formats_) {
      const uint64_t bytes = output_bytes(*format);
      result.plan += fmt::format("{:<14}{}: {}\n", "output", format->text(), format_bytes(bytes));
      json["outputs"].push_back({{"format", format->text()}, {"bytes", bytes}});
    }
    result.plan_json = dump_json(json, 1) + "\n";
    if (options_.dry_run) {
      if (reads_text()) (void)load_calibration_text();  // is there enough?
      warn_of_output();
      return result;
    }
    if (rereads && !journal_.exists()) {
      ctx_.warn(fmt::format(
          "--calib self: the model does not fit in memory and is read again {} times to write its "
          "text, {} each; --calib FILE needs none of that",
          plan_.sampling->passes, format_duration(speed.read_seconds)));
    }

    if (options_.out.empty()) raise(ErrorCode::kBadOption, "quantize needs --out DIR");
    check_output();
    io::make_directories(options_.out);
    const io::DirectoryLock lock(options_.out);
    api::warn_without_lock(ctx_, lock);
    const bool resumed = prepare_directory();
    start_ = Clock::now();
    // Sampling reads all of the model too; a run that is gone on with was checked when it began.
    if (!resumed && !samples_itself()) model_.check_values(ctx_);
    const calib::Dataset data = calibration(resumed);
    open_journal(resumed, data);
    if (is_finished()) {
      for (const auto& format : formats_) result.outputs.push_back(output_path(*format));
      result.record_json = io::read_text_file(record_path(), kMaxRecordBytes);
      result.summary = summarize(result.outputs);
      return result;
    }
    if (resumed) check_disk(options_.out);
    pipeline::run_plan(ctx_, model_, plan_, data, journal_);
    quantized_ = seconds_since(start_);
    check_model_stayed();
    try {
      write_outputs(result);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kWriteFailed) throw;
      raise(e.code(), "{}; all blocks are kept, and lpcd export {} writes them elsewhere",
            e.message(), shell_word(options_.out));
    }
    result.record_json = dump_json(make_record(data, result.outputs), 1) + "\n";
    io::write_file(record_path(), result.record_json);
    finish_journal(result.outputs);
    result.summary = summarize(result.outputs);
    return result;
  }

 private:
  // Options that follow from others, so that the fingerprint is that of what is done.
  void normalize() {
    const bool plain = !options_.qep && options_.lpcd == std::vector<std::string>{"none"};
    if (options_.preset == Preset::kOnecomp && plain && options_.method == Method::kGptq) {
      options_.hessian_from = HessianFrom::kOriginal;  // its plain GPTQ sees the original's inputs
    }
    if (options_.mse && !options_.was_given("scale-search")) options_.scale_search = false;
    if (options_.calib.ends_with(".safetensors")) {  // the ids decide
      const calib::Dataset ids =
          goes_on_with_ids() && !io::exists(options_.calib)
              ? journal_.load_calibration()
              : calib::load_dataset(options_.calib, nullptr,
                                    {.samples = options_.samples, .seq_len = options_.seq_len});
      options_.samples = ids.sequences();
      options_.seq_len = ids.seq_len;
    }
  }

  // A run that is gone on with has its token ids.
  [[nodiscard]] bool goes_on_with_ids() const {
    return options_.resume && journal_.exists() && journal_.has_calibration();
  }

  // Before anything that takes time.
  void check_calibration_source() const {
    if (!reads_text()) return;
    const char* const remedy = "--calib takes self, FILE.txt, FILE.jsonl or FILE.safetensors";
    if (!io::exists(options_.calib)) {
      raise(ErrorCode::kFileNotFound, "{}: cannot open: no such file; {}", options_.calib, remedy);
    }
    if (fs::is_directory(options_.calib)) {
      raise(ErrorCode::kReadFailed, "{}: is a directory; {}", options_.calib, remedy);
    }
  }

  // The directory is absent, empty, or holds a run that is to be gone on with.
  void check_output() const {
    if (!journal_.exists()) {
      api::require_empty(options_.out);
    } else if (!options_.resume) {
      raise(ErrorCode::kOutputExists, "{}: holds {}", options_.out,
            journal_.read_run().value("finished", false)
                ? "a finished run; give another --out"
                : "an unfinished run; add --resume to go on with it, or give another --out");
    }
  }

  // For what is to come: blocks and files that are there need no more.
  void check_disk(const std::string& directory) const {
    const uint64_t available = io::free_disk_bytes(directory);
    const bool resumed = journal_.exists();
    const uint64_t there = resumed ? bytes_below(options_.out) : 0;
    const uint64_t needed = plan_.disk_bytes - std::min(plan_.disk_bytes, there);
    if (available < needed) {
      raise(ErrorCode::kOutOfDisk, "{}: {} free, the run needs {}{}; free space{}", options_.out,
            format_bytes(available), format_bytes(needed), resumed ? " more" : "",
            resumed ? " and resume" : " or give another --out");
    }
  }

  // Weights are read block by block, for as long as the run takes.
  void check_model_stayed() {
    Json run = journal_.read_run();
    Json& model = run.at("fingerprint").at("model");
    if (model == model_.identity()) return;
    model = "changed during the run";  // which blocks it is in, nobody knows: not to be resumed
    journal_.update_run(run);
    raise(ErrorCode::kBadFile,
          "{}: was changed while the run was on: blocks from before and after do not belong "
          "together; start again with another --out",
          options_.model);
  }

  // What the run would refuse, of a plan that was asked for.
  void warn_of_output() const {
    if (options_.out.empty()) return;
    try {
      check_output();
      fs::path directory = fs::absolute(options_.out);
      while (!io::exists(directory.string())) directory = directory.parent_path();
      if (!journal_.exists() || !journal_.read_run().value("finished", false)) {
        check_disk(directory.string());
      }
    } catch (const Error& e) {
      ctx_.warn(e.what());
    }
  }

  [[nodiscard]] double seconds_to_read_blocks() const {
    const auto start = Clock::now();
    (void)model_.read_block(0, &ctx_);
    return seconds_since(start) * static_cast<double>(plan_.blocks);
  }

  [[nodiscard]] std::string record_path() const { return options_.out + "/record.json"; }

  static uint64_t bytes_below(const std::string& directory) {
    uint64_t bytes = 0;
    std::error_code error;  // of files that a run at work takes away
    for (fs::recursive_directory_iterator i(directory, error), end; !error && i != end;
         i.increment(error)) {
      std::error_code gone;
      const uint64_t size = i->is_regular_file(gone) ? i->file_size(gone) : 0;
      if (!gone) bytes += size;
    }
    return bytes;
  }

  // Of an output as write_output names it: a GGUF file, or a directory of safetensors files.
  static uint64_t weight_bytes(const std::string& path) {
    if (fs::is_regular_file(path)) return fs::file_size(path);
    uint64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
    }
    return bytes;
  }

  [[nodiscard]] std::string output_path(const format::OutputFormat& format) const {
    return api::output_path(model_, format,
                            api::output_directory(options_.out, format, formats_.size()));
  }

  // True if all that this run would write is there, as a finished run left it: its record tells
  // what the work cost, and must not be replaced by what finding it done costs. Paths are those of
  // now: the directory may have been moved.
  [[nodiscard]] bool is_finished() const {
    if (!journal_.read_run().value("finished", false) || !io::exists(record_path())) return false;
    if (journal_.committed_blocks() < plan_.blocks) return false;  // damaged ones were taken away
    const Json record = read_record();
    if (record.at("formats") != Json(options_.formats)) return false;
    for (size_t i = 0; i < formats_.size(); ++i) {
      const std::string path = output_path(*formats_[i]);
      const bool complete = fs::is_regular_file(path) || io::exists(path + "/config.json");
      if (!complete || weight_bytes(path) != record.at("outputs").at(i).at("weight_bytes")) {
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] Json read_record() const {
    return parse_json(io::read_text_file(record_path(), kMaxRecordBytes), "record.json");
  }

  // True if there is a run to go on with. To be called under the lock.
  bool prepare_directory() {
    io::remove_temporaries(options_.out);
    journal_.remove_temporaries();
    for (const auto& format : formats_) {
      const std::string directory = api::output_directory(options_.out, *format, formats_.size());
      if (io::exists(directory)) bundle::remove_leftovers(directory);
    }
    check_output();  // another process may have been faster
    if (journal_.exists()) return true;
    journal_.clear();  // of a run that died before it began
    check_disk(options_.out);
    return false;
  }

  [[nodiscard]] uint64_t output_bytes(const format::OutputFormat& format) const {
    const auto grid_of = [&](int64_t block, arch::Role role) {
      return plan_.layer(block, role).grid;
    };
    const format::QuantizedMatrix never_read;
    const auto read_layer = [&](int64_t, arch::Role) -> const format::QuantizedMatrix& {
      return never_read;
    };
    if (format.container() == format::Container::kGguf) {
      return bundle::estimate_gguf_bytes(
          {.model = &model_,
           .format = &format,
           .grid_of = grid_of,
           .read_layer = read_layer,
           .matrix_type = api::matrix_types(model_, format, options_.tensor_types)});
    }
    bundle::DirectoryContents contents;
    contents.model = &model_;
    contents.format = &format;
    contents.grid_of = grid_of;
    contents.read_layer = read_layer;
    contents.max_shard_bytes = max_shard_bytes_;
    return bundle::estimate_bytes(contents);
  }

  calib::Dataset calibration(bool resumed) {
    if (!plan_.needs_calibration) return {};
    if (resumed && journal_.has_calibration()) return journal_.load_calibration();
    if (samples_itself()) {
      const text::Tokenizer* tokenizer = tokenizer_ ? &*tokenizer_ : nullptr;
      const uint64_t budget = plan_.sampling_keeps_weights ? plan_.sampling->weight_bytes : 0;
      const std::string key = sample_key();
      const calib::SampleCheckpoint checkpoint{
          .load = [&] { return journal_.load_sample(key); },
          .save = [&](std::span<const int32_t> ids) { journal_.save_sample(key, ids); }};
      return calib::sample_from_model(ctx_, model_, tokenizer, dataset_options(),
                                      options_.self_temperature, budget, &checkpoint);
    }
    return load_calibration_text();
  }

  // What text of the model's own depends on.
  [[nodiscard]] std::string sample_key() const {
    const auto leading = tokenizer_ ? tokenizer_->leading_id() : std::nullopt;
    const Json key = {pipeline::kNumericsVersion,
                      model_.identity(),
                      linalg::arithmetic(ctx_),
                      leading.value_or(-1),
                      options_.samples,
                      options_.seq_len,
                      options_.seed,
                      options_.self_temperature};
    return dump_json(key);
  }

  [[nodiscard]] calib::DatasetOptions dataset_options() const {
    return {.samples = options_.samples,
            .seq_len = options_.seq_len,
            .seed = options_.seed,
            .text_key = options_.text_key};
  }

  [[nodiscard]] bool samples_itself() const {
    return plan_.needs_calibration && options_.calib == "self";
  }

  [[nodiscard]] bool reads_text() const {
    return plan_.needs_calibration && !samples_itself() && !goes_on_with_ids();
  }

  [[nodiscard]] calib::Dataset load_calibration_text() const {
    return calib::load_dataset(options_.calib, tokenizer_ ? &*tokenizer_ : nullptr,
                               dataset_options());
  }

  // The token ids of the journal are used; --calib must name where they came from.
  void check_same_calibration(const calib::Dataset& kept) const {
    if (!plan_.needs_calibration) return;
    const bool was_self = kept.sources.size() == 1 && kept.sources[0].name == "self";
    const bool is_self = options_.calib == "self";
    if (was_self && is_self) return;  // written by the model of the fingerprint, with its options
    if (was_self == is_self) {
      if (!io::exists(options_.calib)) {
        ctx_.warn(
            fmt::format("{}: no such file any more; going on with the tokens that were taken "
                        "from it",
                        options_.calib));
        return;
      }
      if (load_calibration_text().hash() == kept.hash()) return;
    }
    raise(ErrorCode::kResumeMismatch,
          "cannot resume: --calib {} does not give the tokens that the run started with, which are "
          "from {}; give the text of the first run, or another --out",
          options_.calib, kept.sources.empty() ? "elsewhere" : kept.sources[0].name);
  }

  // What is no part of the numbers, but of the files that are written.
  void check_same_outputs(const Json& run) const {
    const auto check = [&](const char* key, const char* flag, const Json& now) {
      if (!run.contains(key) || run[key] == now) return;
      raise(
          ErrorCode::kResumeMismatch,
          "cannot resume: --{} was {}, is {}; use that of the first run, and lpcd export to write "
          "the finished run in another way",
          flag, dump_json(run[key]), dump_json(now));
    };
    check("formats", "format", options_.formats);
    check("shard_size", "shard-size", options_.shard_size);
  }

  [[nodiscard]] Json fingerprint(const calib::Dataset& data) const {
    return {{"numerics_version", pipeline::kNumericsVersion},
            {"model", model_.identity()},
            {"calibration", data.ids.empty() ? "none" : data.hash()},
            {"options", parse_json(numeric_options_json(options_), "options")}};
  }

  void open_journal(bool resumed, const calib::Dataset& data) {
    const Json current = fingerprint(data);
    const std::string arithmetic = linalg::arithmetic(ctx_);
    calibrated_ = seconds_since(start_);
    if (resumed) {
      const Json run = journal_.read_run();
      calibrated_ = run.value("calibration_seconds", calibrated_);
      pipeline::check_same_fingerprint(run.at("fingerprint"), current);
      check_same_outputs(run);
      check_same_calibration(data);
      const std::string before = run.value("arithmetic", "");
      if (before != arithmetic) {
        ctx_.warn(fmt::format("the run was started with {}, this is {}: the last bits may differ",
                              before, arithmetic));
      }
      return;
    }
    if (!data.ids.empty()) {
      io::make_directories(journal_.directory());
      journal_.save_calibration(data);
    }
    journal_.create({{"schema_version", kRecordSchema},
                     {"lpcd_version", version()},
                     {"model", fs::absolute(options_.model).string()},
                     {"fingerprint", current},
                     {"formats", options_.formats},
                     {"shard_size", options_.shard_size},
                     {"calib", options_.calib},
                     {"arithmetic", arithmetic},
                     {"calibration_seconds", calibrated_},
                     {"blocks", plan_.blocks},
                     {"finished", false}});
  }

  void write_outputs(QuantizeResult& result) {
    Json meta = {{"quantizer", {"lpcd.cpp:" + version()}},
                 {"method", EnumNames<Method>::values[static_cast<size_t>(options_.method)]},
                 {"qep", options_.qep},
                 {"lpcd", options_.lpcd}};
    // Of several each layer has its own: record.json says which.
    if (options_.method == Method::kGptq && plan_.dampings.size() == 1) {
      meta["damp_percent"] = plan_.dampings.front();
    }
    for (const auto& format : formats_) {
      const std::string directory = api::output_directory(options_.out, *format, formats_.size());
      result.outputs.push_back(api::write_output(ctx_,
                                                 {.model = model_,
                                                  .tokenizer = tokenizer_ ? &*tokenizer_ : nullptr,
                                                  .journal = journal_,
                                                  .tensor_types = options_.tensor_types,
                                                  .meta = meta,
                                                  .max_shard_bytes = max_shard_bytes_},
                                                 *format, directory));
    }
    written_ = seconds_since(start_);
  }

  void finish_journal(const std::vector<std::string>& outputs) {
    Json run = journal_.read_run();
    run["finished"] = true;
    run["outputs"] = outputs;
    journal_.update_run(run);
    journal_.remove_state();
  }

  // Bits per weight of the quantized layers, scales and zeros included.
  [[nodiscard]] double bits_per_weight() const {
    return 8.0 * static_cast<double>(plan_.quantized_bytes) /
           static_cast<double>(model_.config().linear_parameters() * model_.config().blocks);
  }

  Json make_record(const calib::Dataset& data, const std::vector<std::string>& outputs) {
    Json record = {{"schema_version", kRecordSchema},
                   {"lpcd_version", version()},
                   {"model",
                    {{"path", options_.model},
                     {"architecture", model_.config().architecture},
                     {"parameters", model_.parameters()},
                     {"stored_bytes", model_.stored_bytes()}}},
                   {"fingerprint", fingerprint(data)},
                   {"formats", options_.formats},
                   {"machine", api::describe_machine(ctx_)},
                   {"bits_per_weight", bits_per_weight()}};
    for (const auto& s : data.sources) {
      record["calibration"].push_back(
          {{"source", s.name}, {"tokens", s.tokens}, {"available", s.available}});
    }
    std::map<std::string, report::StageCost> stages;
    double block_seconds = 0;
    double flops = 0;
    for (int64_t b = 0; b < plan_.blocks; ++b) {
      Json block = journal_.read_record(b);
      block_seconds += block.value("seconds", 0.0);
      const Json costs = block.value("stages", Json::object());
      for (const auto& [name, cost] : costs.items()) {
        stages[name].seconds += cost.value("seconds", 0.0);
        stages[name].flops += cost.value("flops", 0.0);
        flops += cost.value("flops", 0.0);
      }
      block.erase("stored");
      record["blocks"].push_back(std::move(block));
    }
    Json stage_costs = Json::object();
    for (const auto& [name, cost] : stages) {
      stage_costs[name] = {{"seconds", cost.seconds}, {"flops", cost.flops}};
    }
    const double total = calibrated_ + block_seconds + (written_ - quantized_);
    record["cost"] = {{"gemm_flops_per_second", rate_},
                      {"flops", flops},
                      {"stages", stage_costs},
                      {"calibration_seconds", calibrated_},
                      {"blocks_seconds", block_seconds},
                      {"write_seconds", written_ - quantized_},
                      {"total_seconds", total},
                      {"share_of_gemm_rate", total > 0 ? flops / total / rate_ : 0.0},
                      {"peak_memory_bytes", api::peak_memory()}};
    for (const std::string& path : outputs) {
      record["outputs"].push_back({{"path", path}, {"weight_bytes", weight_bytes(path)}});
    }
    return record;
  }

  std::string summarize(const std::vector<std::string>& outputs) {
    const Json record = read_record();
    const Json& cost = record.at("cost");
    std::string text;
    for (size_t i = 0; i < outputs.size(); ++i) {
      text += fmt::format("{}: {}, {}\n", outputs[i], options_.formats[i],
                          format_bytes(record["outputs"][i]["weight_bytes"].get<uint64_t>()));
    }
    for (const Json& source : record.value("calibration", Json::array())) {
      text +=
          fmt::format("calibrated on {} of {} tokens from {}\n", source["tokens"].get<int64_t>(),
                      source["available"].get<int64_t>(), source["source"].get<std::string>());
    }
    text += fmt::format(
        "{:.3f} bits per quantized weight; {}, {:.0f} % of the GEMM rate, peak memory {}\n",
        bits_per_weight(), format_duration(cost["total_seconds"].get<double>()),
        100 * cost["share_of_gemm_rate"].get<double>(),
        format_bytes(cost["peak_memory_bytes"].get<uint64_t>()));
    return text;
  }

  RunContext ctx_;
  QuantizeOptions options_;
  std::vector<std::unique_ptr<format::OutputFormat>> formats_;
  arch::Model model_;
  std::optional<text::Tokenizer> tokenizer_;
  uint64_t max_shard_bytes_;
  pipeline::Journal journal_;
  pipeline::Plan plan_;
  double rate_ = 0;
  Clock::time_point start_;
  double calibrated_ = 0;  // seconds since start_
  double quantized_ = 0;
  double written_ = 0;
};

}  // namespace

QuantizeResult quantize(const QuantizeOptions& options, const RunContext& ctx) {
  return api::with_typed_errors([&] {
    check_ranges(options);
    return QuantizeJob(options, ctx).run();
  });
}

}  // namespace lpcd
