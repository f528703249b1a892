// The two passes of resize.h for processors with AVX2. Compiled for every x86-64 machine, run only
// where the processor has it; equal to the portable ones bit for bit.

#include "resize.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cstring>

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

namespace fastrot {

namespace {

constexpr std::int32_t kRound = 1 << (2 * kWeightBits - 1);

// More taps could overflow the sum of the low parts of the weights: 16 * 8 * 255 < 2^15.
constexpr int kMostTaps = 16;

AVX2 inline __m256i load(const std::uint8_t *from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
}

// Store 32-bit values that a lane-wise operation left in two lanes, `apart` values from each other.
AVX2 inline void store_lanes(std::int32_t *to, int apart, __m256i values) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(values));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + apart), _mm256_extracti128_si256(values, 1));
}

// 32 values. A weight is 16 * high + low, |low| <= 8, so that both parts are signed bytes: the
// sums of high and of low products are the two halves of the result as they are.
AVX2 inline void vertical32(const std::uint8_t *const *rows, const std::int16_t *high,
                            const std::int16_t *low, int pairs, std::size_t k,
                            std::int32_t *out) {
  __m256i high0 = _mm256_setzero_si256(), high1 = high0, low0 = high0, low1 = high0;
  for (int p = 0; p < pairs; ++p) {
    const __m256i a = load(rows[2 * p] + k), b = load(rows[2 * p + 1] + k);
    const __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
    const __m256i weight_high = _mm256_set1_epi16(high[p]), weight_low = _mm256_set1_epi16(low[p]);
    high0 = _mm256_add_epi16(high0, _mm256_maddubs_epi16(first, weight_high));
    high1 = _mm256_add_epi16(high1, _mm256_maddubs_epi16(second, weight_high));
    low0 = _mm256_add_epi16(low0, _mm256_maddubs_epi16(first, weight_low));
    low1 = _mm256_add_epi16(low1, _mm256_maddubs_epi16(second, weight_low));
  }
  store_lanes(out + k, 16, _mm256_unpacklo_epi16(high0, low0));
  store_lanes(out + k + 4, 16, _mm256_unpackhi_epi16(high0, low0));
  store_lanes(out + k + 8, 16, _mm256_unpacklo_epi16(high1, low1));
  store_lanes(out + k + 12, 16, _mm256_unpackhi_epi16(high1, low1));
}

std::int16_t two_bytes(int first, int second) {
  return static_cast<std::int16_t>((first & 0xff) | ((second & 0xff) << 8));
}

AVX2 void vertical(const std::uint8_t *const *rows, const std::int16_t *weights, int taps,
                   std::size_t n, std::int32_t *out) {
  if (n < 32 || taps > kMostTaps) {
    scalar_passes().vertical(rows, weights, taps, n, out);
    return;
  }
  std::int16_t high[kMostTaps / 2], low[kMostTaps / 2];
  for (int t = 0; t < taps; t += 2) {
    const int h0 = (weights[t] + 8) >> 4, h1 = (weights[t + 1] + 8) >> 4;
    high[t / 2] = two_bytes(h0, h1);
    low[t / 2] = two_bytes(weights[t] - 16 * h0, weights[t + 1] - 16 * h1);
  }
  std::size_t k = 0;
  for (; k + 32 <= n; k += 32) vertical32(rows, high, low, taps / 2, k, out);
  if (k < n) vertical32(rows, high, low, taps / 2, n - 32, out);  // some once more
}

// Two output pixels, each in a lane: red, green, blue, and one value of no meaning.
template <int kChannels>
AVX2 inline __m256i two_pixels(const std::int32_t *in, const std::int32_t *first,
                               const std::int32_t *pairs, int taps) {
  const std::int32_t *a = in + std::ptrdiff_t{first[0]} * kChannels;
  const std::int32_t *b = in + std::ptrdiff_t{first[1]} * kChannels;
  __m256i sum = _mm256_set1_epi32(kRound);
  for (int t = 0; t < taps; ++t, a += kChannels, b += kChannels, pairs += 8) {
    const __m256i both = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(a))),
        _mm_loadu_si128(reinterpret_cast<const __m128i *>(b)), 1);
    const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(pairs));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, weight));
  }
  return _mm256_srai_epi32(sum, 2 * kWeightBits);
}

template <int kChannels>
AVX2 void horizontal_of(const std::int32_t *in, const std::int32_t *first,
                        const std::int32_t *pairs, int taps, int size, std::uint8_t *out) {
  const __m128i drop_fourth =
      _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  const std::ptrdiff_t stride = std::ptrdiff_t{taps} * 8;
  int i = 0;
  for (; i + 4 <= size; i += 4) {
    const __m256i first_two = two_pixels<kChannels>(in, first + i, pairs + i / 2 * stride, taps);
    const __m256i next_two =
        two_pixels<kChannels>(in, first + i + 2, pairs + (i / 2 + 1) * stride, taps);
    const __m256i words = _mm256_packs_epi32(first_two, next_two);  // 0, 2 and 1, 3
    const __m128i even = _mm256_castsi256_si128(words), odd = _mm256_extracti128_si256(words, 1);
    const __m128i bytes =
        _mm_packus_epi16(_mm_unpacklo_epi64(even, odd), _mm_unpackhi_epi64(even, odd));
    const __m128i pixels = _mm_shuffle_epi8(bytes, drop_fourth);
    if (i + 6 <= size) {  // what is written beyond is written again
      _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i * 3), pixels);
    } else {
      alignas(16) std::uint8_t four[16];
      _mm_store_si128(reinterpret_cast<__m128i *>(four), pixels);
      std::memcpy(out + i * 3, four, 12);
    }
  }
  if (i < size) {
    scalar_passes().horizontal(in, kChannels, first + i, pairs + i / 2 * stride, taps, size - i,
                               out + i * 3);
  }
}

AVX2 void horizontal(const std::int32_t *in, int channels, const std::int32_t *first,
                     const std::int32_t *pairs, int taps, int size, std::uint8_t *out) {
  if (channels == 4) {
    horizontal_of<4>(in, first, pairs, taps, size, out);
  } else {
    horizontal_of<3>(in, first, pairs, taps, size, out);
  }
}

const Passes kAvx2 = {vertical, horizontal, "avx2"};

}  // namespace

const Passes &avx2_passes() { return kAvx2; }

}  // namespace fastrot

#endif
