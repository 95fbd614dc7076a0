#include "lpcd/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <new>

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/regex_syntax.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

template <typename T>
Owned<T> owned(T* pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return Owned<T>(pointer);
}

// A match sees a window of the text, which grows while the match runs into its end. In the first
// window the work is bounded by its length and the number of backtracking steps; in larger ones it
// is counted, by the way that the match goes back and forth over the text.
constexpr size_t kFirstWindow = 128;    // nearly all words
constexpr size_t kWindowGrowth = 4;     // geometric, so that one long run costs a multiple of it
constexpr size_t kWorkPerByte = 64;     // of the whole text; real patterns take up to 10
constexpr size_t kFreeWork = 1 << 20;   // short texts may cost this much in any case
constexpr uint32_t kStepsPerByte = 64;  // of the window; real patterns take up to 3
constexpr uint32_t kHeapKib = 64 * 1024;
constexpr size_t kJitStackBytes = 64 << 20;

size_t char_boundary(std::string_view text, size_t at) {
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
  return at;
}

}  // namespace

struct Regex::Compiled {
  std::string source;
  std::string where;
  Owned<pcre2_code> code;
  Owned<pcre2_code> counted;  // the same with a call before each item
};

Regex::Regex(std::string_view pattern, std::string_view where) {
  const std::string translated = pcre2_pattern(pattern, where);
  const auto context = owned(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  const auto compile = [&](uint32_t options) {
    int error = 0;
    size_t offset = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | options,
                      &error, &offset, context.get());
    if (code == nullptr) {
      std::array<PCRE2_UCHAR, 200> message{};
      pcre2_get_error_message(error, message.data(), message.size());
      raise(ErrorCode::kBadFile, "{}: the pattern {} cannot be used ({})", where,
            io::in_quotes(pattern), reinterpret_cast<const char*>(message.data()));
    }
    // Without a just-in-time compiler for this processor, matching is slower but the same.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
    return owned(code);
  };
  compiled_ = std::make_unique<Compiled>(Compiled{.source = std::string(pattern),
                                                  .where = std::string(where),
                                                  .code = compile(0),
                                                  .counted = compile(PCRE2_AUTO_CALLOUT)});
}

Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

struct Regex::Matches::State {
  const Compiled& regex;
  std::string_view text;
  Owned<pcre2_match_context> context;
  Owned<pcre2_match_data> data;
  Owned<pcre2_jit_stack> stack;
  size_t from = 0;      // where the next search begins
  size_t last_end = 0;  // of the last match; none at the beginning
  bool any = false;
  size_t work = 0;
  size_t place = 0;  // of the match at the last call

  [[noreturn]] void too_slow() const {
    raise(ErrorCode::kBadFile,
          "{}: the pattern {} takes too many steps on this text; it is not one of a usable "
          "tokenizer",
          regex.where, io::in_quotes(regex.source));
  }

  // False when it is too much.
  bool add_work(size_t amount) {
    work += amount;
    return work <= kFreeWork + kWorkPerByte * text.size();
  }

  static int on_item(pcre2_callout_block* block, void* self) {
    auto& state = *static_cast<State*>(self);
    const size_t here = block->current_position;
    const size_t way = here > state.place ? here - state.place : state.place - here;
    state.place = here;
    return state.add_work(way + 1) ? 0 : PCRE2_ERROR_CALLOUT;
  }

  // PCRE2's answer for the text up to `end`.
  int match(size_t begin, size_t end, size_t window) {
    const auto steps = static_cast<uint32_t>(
        std::min<size_t>(UINT32_MAX, (kFirstWindow + window) * kStepsPerByte));
    pcre2_set_match_limit(context.get(), steps);
    const uint32_t options = PCRE2_NO_UTF_CHECK | (end < text.size() ? PCRE2_PARTIAL_HARD : 0);
    place = begin;
    const int answer = pcre2_match((window > kFirstWindow ? regex.counted : regex.code).get(),
                                   reinterpret_cast<PCRE2_SPTR>(text.data()), end, begin, options,
                                   data.get(), context.get());
    if (answer != PCRE2_ERROR_JIT_STACKLIMIT || stack != nullptr) return answer;
    // Groups that repeat keep their way back on a stack; the default is small.
    stack = owned(pcre2_jit_stack_create(64 << 10, kJitStackBytes, nullptr));
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    return match(begin, end, window);
  }
};

Regex::Matches::Matches(const Regex& regex, std::string_view text)
    : state_(new State{.regex = *regex.compiled_,
                       .text = text,
                       .context = owned(pcre2_match_context_create(nullptr)),
                       .data = owned(pcre2_match_data_create(1, nullptr)),
                       .stack = nullptr}) {
  pcre2_set_heap_limit(state_->context.get(), kHeapKib);
  pcre2_set_depth_limit(state_->context.get(), UINT32_MAX);
  pcre2_set_callout(state_->context.get(), State::on_item, state_.get());
}

Regex::Matches::~Matches() = default;

bool Regex::Matches::search(size_t from, Match& match) {
  State& s = *state_;
  size_t window = kFirstWindow;
  while (true) {
    const size_t rest = s.text.size() - from;
    const size_t end = rest <= window ? s.text.size() : char_boundary(s.text, from + window);
    const bool whole = end == s.text.size();
    const int answer = s.match(from, end, window);
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(s.data.get());
    if (answer > 0 && (whole || found[0] < end)) {
      match = {.begin = found[0], .end = found[1]};
      return true;
    }
    if (answer == PCRE2_ERROR_NOMATCH && whole) return false;
    if (answer == PCRE2_ERROR_NOMATCH || answer > 0) {
      from = end;  // nothing begins in this window; go on with the next one
      window = kFirstWindow;
    } else if (answer == PCRE2_ERROR_PARTIAL) {
      from = found[0];
      window *= kWindowGrowth;
      if (!s.add_work(window)) s.too_slow();
    } else if (answer == PCRE2_ERROR_NOMEMORY) {
      throw std::bad_alloc();
    } else {
      s.too_slow();  // one of the limits, or on_item()
    }
  }
}

bool Regex::Matches::next(Match& match) {
  State& s = *state_;
  while (s.from <= s.text.size() && search(s.from, match)) {
    if (match.begin == match.end && s.any && match.end == s.last_end) {
      s.from += s.from < s.text.size() ? char_bytes(s.text[s.from]) : 1;
      continue;
    }
    s.from = match.end;
    s.last_end = match.end;
    s.any = true;
    return true;
  }
  return false;
}

}  // namespace lpcd::text
