// The two passes of resize.h for processors with AVX2. Compiled on every x86-64 machine, but run
// only if the processor supports AVX2; results equal those of the portable passes bit for bit.

#include "resize.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cstring>

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

namespace fastrot {

namespace {

constexpr std::int32_t kRound = 1 << (2 * kWeightBits - 1);

// With more taps the sum of the weights' low parts could overflow: 16 * 8 * 255 < 2^15.
constexpr int kMostTaps = 16;

AVX2 inline __m256i load(const std::uint8_t *from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
}

// Stores the 32-bit values of two lanes, `apart` values from each other.
AVX2 inline void store_lanes(std::int32_t *to, int apart, __m256i values) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(values));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + apart), _mm256_extracti128_si256(values, 1));
}

// Weights of two rows, ready for multiplication. A weight is 16 * high + low, |low| <= 8, so both
// parts are signed bytes: the sums of the high and of the low products are the result's two halves.
struct WeightPair {
  std::int32_t high, low;  // (byte of the first row, byte of the second), twice
};

WeightPair split(std::int16_t first, std::int16_t second) {
  const auto twice = [](int a, int b) {
    const auto both = static_cast<std::uint32_t>((a & 0xff) | ((b & 0xff) << 8));
    return static_cast<std::int32_t>(both | (both << 16));
  };
  const int high0 = (first + 8) >> 4, high1 = (second + 8) >> 4;
  return {twice(high0, high1), twice(first - 16 * high0, second - 16 * high1)};
}

// Computes 32 values. The compiler knows the number of pairs and keeps all weights in registers.
template <int kPairs>
AVX2 inline void vertical32(const std::uint8_t *const *rows, const WeightPair *weights,
                            std::size_t k, std::int32_t *out) {
  __m256i high0 = _mm256_setzero_si256(), high1 = high0, low0 = high0, low1 = high0;
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
    const __m256i a = load(rows[2 * p] + k), b = load(rows[2 * p + 1] + k);
    const __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
    const __m256i high = _mm256_set1_epi32(weights[p].high);
    const __m256i low = _mm256_set1_epi32(weights[p].low);
    high0 = _mm256_add_epi16(high0, _mm256_maddubs_epi16(first, high));
    high1 = _mm256_add_epi16(high1, _mm256_maddubs_epi16(second, high));
    low0 = _mm256_add_epi16(low0, _mm256_maddubs_epi16(first, low));
    low1 = _mm256_add_epi16(low1, _mm256_maddubs_epi16(second, low));
  }
  store_lanes(out + k, 16, _mm256_unpacklo_epi16(high0, low0));
  store_lanes(out + k + 4, 16, _mm256_unpackhi_epi16(high0, low0));
  store_lanes(out + k + 8, 16, _mm256_unpacklo_epi16(high1, low1));
  store_lanes(out + k + 12, 16, _mm256_unpackhi_epi16(high1, low1));
}

template <int kPairs>
AVX2 void vertical_of(const std::uint8_t *const *rows, const WeightPair *weights, std::size_t n,
                      std::int32_t *out) {
  const std::uint8_t *row[2 * kPairs];
  for (int t = 0; t < 2 * kPairs; ++t) row[t] = rows[t];
  WeightPair weight[kPairs];
  for (int p = 0; p < kPairs; ++p) weight[p] = weights[p];
  std::size_t k = 0;
  for (; k + 32 <= n; k += 32) vertical32<kPairs>(row, weight, k, out);
  if (k < n) vertical32<kPairs>(row, weight, n - 32, out);  // overlaps the last
}

AVX2 void vertical(const std::uint8_t *const *rows, const std::int16_t *weights, int taps,
                   std::size_t n, std::int32_t *out) {
  if (n < 32 || taps > kMostTaps || taps == 0) {
    scalar_passes().vertical(rows, weights, taps, n, out);
    return;
  }
  WeightPair pairs[kMostTaps / 2];
  for (int t = 0; t < taps; t += 2) pairs[t / 2] = split(weights[t], weights[t + 1]);
  switch (taps / 2) {
    case 1: return vertical_of<1>(rows, pairs, n, out);
    case 2: return vertical_of<2>(rows, pairs, n, out);
    case 3: return vertical_of<3>(rows, pairs, n, out);
    case 4: return vertical_of<4>(rows, pairs, n, out);
    case 5: return vertical_of<5>(rows, pairs, n, out);
    case 6: return vertical_of<6>(rows, pairs, n, out);
    case 7: return vertical_of<7>(rows, pairs, n, out);
    default: return vertical_of<8>(rows, pairs, n, out);
  }
}

// Computes two output pixels, one per lane: red, green, blue and a meaningless value. kTaps is the
// number of taps, or 0 if it is known only at run time, as `taps`.
template <int kTaps>
AVX2 inline __m256i two_pixels(const std::int32_t *in, const std::int32_t *first,
                               const std::int32_t *pairs, int taps) {
  const std::int32_t *a = in + std::ptrdiff_t{first[0]} * 3;
  const std::int32_t *b = in + std::ptrdiff_t{first[1]} * 3;
  __m256i sum = _mm256_set1_epi32(kRound);
#pragma GCC unroll 8
  for (int t = 0; t < (kTaps ? kTaps : taps); ++t) {
    const __m256i both = _mm256_inserti128_si256(
        _mm256_castsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i *>(a + t * 3))),
        _mm_loadu_si128(reinterpret_cast<const __m128i *>(b + t * 3)), 1);
    const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(pairs + t * 8));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, weight));
  }
  return _mm256_srai_epi32(sum, 2 * kWeightBits);
}

template <int kTaps>
AVX2 void horizontal_of(const std::int32_t *in, const std::int32_t *first,
                        const std::int32_t *pairs, int taps, int size, std::uint8_t *out) {
  const __m128i drop_fourth =
      _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  const std::ptrdiff_t stride = std::ptrdiff_t{kTaps ? kTaps : taps} * 8;
  int i = 0;
  for (; i + 4 <= size; i += 4) {
    const std::int32_t *weights = pairs + i / 2 * stride;
    const __m256i first_two = two_pixels<kTaps>(in, first + i, weights, taps);
    const __m256i next_two =
        two_pixels<kTaps>(in, first + i + 2, weights + stride, taps);
    const __m256i words = _mm256_packs_epi32(first_two, next_two);  // 0, 2 and 1, 3
    const __m128i even = _mm256_castsi256_si128(words), odd = _mm256_extracti128_si256(words, 1);
    const __m128i bytes =
        _mm_packus_epi16(_mm_unpacklo_epi64(even, odd), _mm_unpackhi_epi64(even, odd));
    const __m128i pixels = _mm_shuffle_epi8(bytes, drop_fourth);
    if (i + 6 <= size) {  // four bytes too many, which later outputs overwrite
      _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i * 3), pixels);
    } else {
      alignas(16) std::uint8_t four[16];
      _mm_store_si128(reinterpret_cast<__m128i *>(four), pixels);
      std::memcpy(out + i * 3, four, 12);
    }
  }
  if (i < size) {
    scalar_passes().horizontal(in, first + i, pairs + i / 2 * stride, taps, size - i,
                               out + i * 3);
  }
}

AVX2 void horizontal(const std::int32_t *in, const std::int32_t *first, const std::int32_t *pairs,
                     int taps, int size, std::uint8_t *out) {
  switch (taps) {
    case 2: return horizontal_of<2>(in, first, pairs, taps, size, out);
    case 3: return horizontal_of<3>(in, first, pairs, taps, size, out);
    case 4: return horizontal_of<4>(in, first, pairs, taps, size, out);
    case 5: return horizontal_of<5>(in, first, pairs, taps, size, out);
    case 6: return horizontal_of<6>(in, first, pairs, taps, size, out);
    default: return horizontal_of<0>(in, first, pairs, taps, size, out);
  }
}

const Passes kAvx2 = {vertical, horizontal, "avx2"};

}  // namespace

const Passes &avx2_passes() { return kAvx2; }

}  // namespace fastrot

#endif
