// Helpers for vector kernels. Included once per instruction set by files that use foreach_target.h
// (see nn/ops.cpp), hence the unusual guard.
#if defined(LPCD_BASE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LPCD_BASE_SIMD_INL_H_
#undef LPCD_BASE_SIMD_INL_H_
#else
#define LPCD_BASE_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace lpcd::simd {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Df = hn::ScalableTag<float>;
using Vf = hn::Vec<Df>;

// Masked accesses leave memory behind the mask alone here; elsewhere they may fault.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
#define LPCD_MASKED_ACCESS 1
#else
#define LPCD_MASKED_ACCESS 0
#endif

/// The first n lanes from memory, zero in the others. (Highway 1.0 of Debian 12 has no LoadN.)
HWY_INLINE Vf load_n(const float* from, size_t n) {
  const Df d;
#if LPCD_MASKED_ACCESS
  return hn::MaskedLoad(hn::FirstN(d, n), d, from);
#else
  HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < n; ++i) lanes[i] = from[i];
  return hn::Load(d, lanes);
#endif
}

/// Stores the first n lanes.
HWY_INLINE void store_n(Vf value, float* to, size_t n) {
  const Df d;
#if LPCD_MASKED_ACCESS
  hn::BlendedStore(value, hn::FirstN(d, n), d, to);
#else
  HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(value, d, lanes);
  for (size_t i = 0; i < n; ++i) to[i] = lanes[i];
#endif
}

#undef LPCD_MASKED_ACCESS

/// Calls body(i, load, store) for whole vectors and once for what is left, where load(p) and
/// store(v, p) access element i of an array p of `count` floats.
template <class Body>
HWY_INLINE void for_vectors(int64_t count, const Body& body) {
  const Df d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    body([&](const float* p) HWY_ATTR { return hn::LoadU(d, p + i); },
         [&](Vf v, float* p) HWY_ATTR { hn::StoreU(v, d, p + i); });
  }
  if (i < count) {
    const auto n = static_cast<size_t>(count - i);
    body([&](const float* p) HWY_ATTR { return load_n(p + i, n); },
         [&](Vf v, float* p) HWY_ATTR { store_n(v, p + i, n); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::simd
HWY_AFTER_NAMESPACE();

#endif
