#include "resize.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fastrot {

namespace {

constexpr std::int32_t kRound = 1 << (2 * kWeightBits - 1);

std::int32_t pair_of(std::int32_t weight) { return (weight << 16) | (16 * weight); }

void vertical(const std::uint8_t *const *rows, const std::int16_t *weights, int taps,
              std::size_t n, std::int32_t *out) {
  std::fill_n(out, n, 0);
  for (int t = 0; t < taps; ++t) {
    const std::uint8_t *row = rows[t];
    const std::int32_t weight = weights[t];
    for (std::size_t k = 0; k < n; ++k) out[k] += weight * row[k];
  }
  for (std::size_t k = 0; k < n; ++k) out[k] = (out[k] >> 4) | ((out[k] & 15) << 16);
}

void horizontal(const std::int32_t *in, const std::int32_t *first, const std::int32_t *pairs,
                int taps, int size, std::uint8_t *out) {
  for (int i = 0; i < size; ++i) {
    const std::int32_t *at = in + static_cast<std::ptrdiff_t>(first[i]) * 3;
    const std::int32_t *weight = pairs + (static_cast<std::ptrdiff_t>(i / 2) * taps * 8 + i % 2 * 4);
    std::int32_t sum[3] = {kRound, kRound, kRound};
    for (int t = 0; t < taps; ++t, at += 3, weight += 8) {
      for (int c = 0; c < 3; ++c) {
        // The low half is never negative here, but it may be after a faster vertical pass.
        sum[c] += (static_cast<std::int16_t>(at[c] & 0xffff) * 16 + (at[c] >> 16)) * (*weight >> 16);
      }
    }
    for (int c = 0; c < 3; ++c) out[i * 3 + c] = static_cast<std::uint8_t>(sum[c] >> (2 * kWeightBits));
  }
}

const Passes kScalar = {vertical, horizontal, "scalar"};

}  // namespace

const Passes &scalar_passes() { return kScalar; }

const Passes &passes() {
  static const Passes &chosen = []() -> const Passes & {
    const char *wanted = std::getenv("FASTROT_SIMD");
    if (wanted && std::strcmp(wanted, "scalar") == 0) return kScalar;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx2")) return avx2_passes();
#endif
    return kScalar;
  }();
  return chosen;
}

std::int64_t Axis::taps_of(std::int64_t length, std::int64_t size, std::int64_t denominator) {
  const std::int64_t pixel = denominator * size;
  return (2 * std::max(pixel, length) + pixel - 1) / pixel;
}

void Axis::plan(std::int64_t start, std::int64_t length, std::int64_t size,
                std::int64_t denominator, int bits) {
  const std::int32_t one = 1 << bits;
  // In units of 1 / (2 * size) of a full pixel everything is an integer. The distance of pixel j is
  // |(2j+1) d S - 2 start S - (2i+1) length| from output i, and the triangle ends at `reach`.
  const std::int64_t pixel = denominator * size;
  const std::int64_t reach = 2 * std::max(pixel, length);
  // Pixels whose centres are in the box: (2j+1) d from 2 start to 2 (start + length).
  const auto first_from = [&](std::int64_t edge) {  // smallest j with (2j+1) d >= edge
    const std::int64_t x = edge - denominator, step = 2 * denominator;
    return x >= 0 ? (x + step - 1) / step : -((-x) / step);
  };
  begin_ = first_from(2 * start);
  end_ = std::max(begin_ + 1, first_from(2 * (start + length)));
  taps_ = static_cast<int>(std::min(end_ - begin_, taps_of(length, size, denominator)));
  const auto outputs = static_cast<std::size_t>(size);
  first_.assign(outputs, 0);
  count_.assign(outputs, 0);
  weights_.assign(outputs * static_cast<std::size_t>(taps_), 0);
  shares_.assign(static_cast<std::size_t>(taps_), 0);
  const bool symmetric = (begin_ + end_) * denominator == 2 * start + length;
  for (std::int64_t i = 0; i < size; ++i) {
    std::int32_t *weights = weights_.data() + i * taps_;
    if (symmetric && 2 * i >= size) {  // the mirror image of its counterpart
      const std::int64_t other = size - 1 - i;
      const std::int32_t count = count_[static_cast<std::size_t>(other)];
      first_[static_cast<std::size_t>(i)] =
          begin_ + end_ - count - first_[static_cast<std::size_t>(other)];
      count_[static_cast<std::size_t>(i)] = count;
      std::reverse_copy(weights_.data() + other * taps_, weights_.data() + other * taps_ + count,
                        weights);
      continue;
    }
    const std::int64_t centre = 2 * start * size + (2 * i + 1) * length;
    const auto share = [&](std::int64_t j) {
      const std::int64_t distance = (2 * j + 1) * pixel - centre;
      return reach - (distance < 0 ? -distance : distance);
    };
    // Find the first pixel with a positive share, from a guess that is at most slightly too early.
    std::int64_t j = std::max(begin_, (centre - reach) / (2 * pixel) - 1);
    while (j + 1 < end_ && share(j) <= 0) ++j;
    first_[static_cast<std::size_t>(i)] = j;
    std::int64_t total = 0;
    std::int32_t count = 0;
    for (; j < end_ && count < taps_ && share(j) > 0; ++j, ++count) {
      total += shares_[static_cast<std::size_t>(count)] = share(j);
    }
    if (count == 0) {  // a shrunk image whose only pixel is outside the box
      shares_[0] = total = 1;
      count = 1;
    }
    count_[static_cast<std::size_t>(i)] = count;
    // Round sums, not shares, so that any number of weights adds up to one. The middle output must
    // remain its own mirror image: round one half of it, and put the rest in its middle.
    const bool middle = symmetric && 2 * i + 1 == size;
    const int until = middle ? count / 2 : count;
    std::int64_t shares = 0;
    std::int32_t before = 0;
    for (int t = 0; t < until; ++t) {
      shares += shares_[static_cast<std::size_t>(t)];
      const auto sum = static_cast<std::int32_t>((2 * one * shares + total) / (2 * total));
      weights[t] = sum - before;
      before = sum;
    }
    if (middle) {
      std::reverse_copy(weights, weights + until, weights + count - until);
      if (count % 2) weights[until] = one - 2 * before;
    }
  }
}

void Resizer::begin(const Box &box, int size, unsigned denominator, std::uint32_t width,
                    std::uint32_t height, std::uint8_t *out) {
  // The same for both sides, or a turned box would be resized differently.
  wide_ = std::max(Axis::taps_of(box.width, size, denominator),
                   Axis::taps_of(box.height, size, denominator)) > kManyTaps;
  const int bits = wide_ ? kWideWeightBits : kWeightBits;
  across_.plan(box.left, box.width, size, denominator, bits);
  down_.plan(box.top, box.height, size, denominator, bits);
  size_ = size;
  next_ = 0;
  out_ = out;
  const auto within = [](std::int64_t value, std::uint32_t most) {
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(value, 0, most));
  };
  left_ = within(across_.begin(), width);
  right_ = within(across_.end(), width);
  top_ = within(down_.begin(), height);
  bottom_ = within(down_.end(), height);
  const auto outputs = static_cast<std::size_t>(size);
  const auto taps = static_cast<std::size_t>(across_.taps());
  window_ = static_cast<std::uint32_t>(down_.taps());
  ring_.assign(window_, nullptr);
  taps_.resize(window_ + 1);
  row_weights_.resize(window_ + 1);
  wide_weights_.resize(window_ + 1);

  // The line between the passes: black left and right of the image, with room for surplus taps.
  const std::int64_t columns = across_.end() - across_.begin();
  const auto values = static_cast<std::size_t>(columns + across_.taps()) * 3 + 8;
  line_.assign(values, 0);
  first_.resize(outputs);
  pairs_.assign(wide_ ? 0 : (outputs + 1) / 2 * taps * 8, 0);
  for (std::size_t i = 0; i < outputs; ++i) {
    first_[i] = static_cast<std::int32_t>(across_.first(static_cast<int>(i)) - across_.begin());
    if (wide_) continue;
    const std::int32_t *weights = across_.weights(static_cast<int>(i));
    std::int32_t *pairs = pairs_.data() + i / 2 * taps * 8 + i % 2 * 4;
    for (std::size_t t = 0; t < taps; ++t) std::fill_n(pairs + t * 8, 4, pair_of(weights[t]));
  }
}

void Resizer::push(std::uint32_t y, const std::uint8_t *row) {
  ring_[y % window_] = row;
  while (next_ < size_ && down_.first(next_) + down_.count(next_) <= std::int64_t{y} + 1) {
    emit(next_++);
  }
}

void Resizer::finish() {
  while (next_ < size_) emit(next_++);
}

void Resizer::emit(int i) {
  const std::int32_t *weights = down_.weights(i);
  const std::int64_t first = down_.first(i);
  int taps = 0;
  for (int t = 0; t < down_.count(i); ++t) {
    const std::int64_t y = first + t;
    if (y < top_ || y >= bottom_) continue;  // black
    taps_[static_cast<std::size_t>(taps)] = ring_[static_cast<std::size_t>(y) % window_];
    wide_weights_[static_cast<std::size_t>(taps)] = weights[t];
    row_weights_[static_cast<std::size_t>(taps++)] = static_cast<std::int16_t>(weights[t]);
  }
  const std::size_t n = std::size_t{right_ - left_} * 3;
  // If the box is outside the image, left_ may be less than the box's first column.
  const auto black = n > 0 ? static_cast<std::size_t>(left_ - across_.begin()) * 3 : 0;
  std::uint8_t *out = out_ + static_cast<std::size_t>(i) * static_cast<std::size_t>(size_) * 3;
  if (wide_) return emit_wide(taps, n, black, out);
  if (taps % 2) {
    taps_[static_cast<std::size_t>(taps)] = taps_[static_cast<std::size_t>(taps - 1)];
    row_weights_[static_cast<std::size_t>(taps++)] = 0;
  }
  if (n > 0) {
    passes().vertical(taps_.data(), row_weights_.data(), taps, n, line_.data() + black);
  }
  passes().horizontal(line_.data(), first_.data(), pairs_.data(), across_.taps(), size_, out);
}

void Resizer::emit_wide(int taps, std::size_t n, std::size_t black, std::uint8_t *out) {
  std::int32_t *line = line_.data() + black;  // up to 255 * 2 ** 16
  std::fill_n(line, n, 0);
  for (int t = 0; t < taps; ++t) {
    const std::uint8_t *row = taps_[static_cast<std::size_t>(t)];
    const std::int32_t weight = wide_weights_[static_cast<std::size_t>(t)];
    for (std::size_t k = 0; k < n; ++k) line[k] += weight * row[k];
  }
  for (int i = 0; i < size_; ++i) {
    const std::int32_t *at = line_.data() + std::ptrdiff_t{first_[static_cast<std::size_t>(i)]} * 3;
    const std::int32_t *weights = across_.weights(i);
    for (int c = 0; c < 3; ++c) {
      std::int64_t sum = std::int64_t{1} << (2 * kWideWeightBits - 1);
      for (int t = 0; t < across_.count(i); ++t) sum += std::int64_t{weights[t]} * at[t * 3 + c];
      *out++ = static_cast<std::uint8_t>(sum >> (2 * kWideWeightBits));
    }
  }
}

}  // namespace fastrot
