// Antialiased bilinear resize of a box to a square, fed row by row.
//
// Pixel j of the source covers [j*d, (j+1)*d), where d is the denominator by which the decoder has
// shrunk the image. Output i is centred on its share of the box and weights pixels by a triangle
// that extends the larger of the two pixel sizes to each side, as in Pillow and in torchvision with
// antialias=True.
//
// Weights are integers that add up to a power of two (1024, or more if very many pixels become one)
// and are mirror images of each other from both ends. Only the final sum is rounded. So turning or
// mirroring the box turns or mirrors the result, bit for bit. A resize that rounds between its two
// passes does not have this property, and a network trained to recognise turns would exploit that.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastrot {

constexpr int kWeightBits = 10;
constexpr int kManyTaps = 16;        // with more, ten bits per weight are too coarse
constexpr int kWideWeightBits = 16;  // for more taps, in portable code with 64-bit sums

// A box in pixels of the full image; it may extend beyond it, where everything is black.
struct Box {
  std::int32_t left, top, width, height;
};

// Weights along one side.
class Axis {
 public:
  // `start`, `length`: of the box. `size`: outputs. The weights add up to 2 ** bits.
  void plan(std::int64_t start, std::int64_t length, std::int64_t size, std::int64_t denominator,
            int bits);
  // Returns the maximum number of pixels per output; needs no `plan`.
  static std::int64_t taps_of(std::int64_t length, std::int64_t size, std::int64_t denominator);

  // Output i is a sum of count(i) pixels, at most taps(), starting with first(i).
  std::int64_t first(int i) const { return first_[static_cast<std::size_t>(i)]; }
  int count(int i) const { return count_[static_cast<std::size_t>(i)]; }
  int taps() const { return taps_; }
  // Returns taps() weights; those after the first count(i) are zero.
  const std::int32_t *weights(int i) const {
    return weights_.data() + static_cast<std::size_t>(i) * static_cast<std::size_t>(taps_);
  }
  // [begin, end): the pixels that any output needs.
  std::int64_t begin() const { return begin_; }
  std::int64_t end() const { return end_; }

 private:
  std::int64_t begin_ = 0, end_ = 0;
  int taps_ = 0;
  std::vector<std::int64_t> first_;
  std::vector<std::int32_t> count_;
  std::vector<std::int32_t> weights_;
  std::vector<std::int64_t> shares_;
};

// The two passes. Between them a value v (18 bits, exact) is stored as two 16-bit numbers,
// v = 16 * low half + high half, so that one multiplication of 16-bit pairs, by
// (16 * weight, weight), gives v * weight.
struct Passes {
  // out[k] = sum over t of weights[t] * rows[t][k], k < n; `taps` is even.
  void (*vertical)(const std::uint8_t *const *rows, const std::int16_t *weights, int taps,
                   std::size_t n, std::int32_t *out);
  // out[i] = round(sum over t of weights * in[first[i] + t]), three values per pixel; one value
  // after the last of `in` must be readable. `pairs` holds, for outputs 2k and 2k + 1 together and
  // for each tap, the pair of the first output four times, then that of the second.
  void (*horizontal)(const std::int32_t *in, const std::int32_t *first, const std::int32_t *pairs,
                     int taps, int size, std::uint8_t *out);
  const char *name;
};

// Returns the fastest passes for this processor; FASTROT_SIMD=scalar selects the portable ones.
const Passes &passes();
const Passes &scalar_passes();
#if defined(__x86_64__) && defined(__GNUC__)
const Passes &avx2_passes();
#endif

class Resizer {
 public:
  // `width`, `height`: size of the source, RGB, in its own pixels. Throws std::bad_alloc.
  void begin(const Box &box, int size, unsigned denominator, std::uint32_t width,
             std::uint32_t height, std::uint8_t *out);

  // The part of the source that is needed; empty if the box is outside it.
  std::uint32_t left() const { return left_; }
  std::uint32_t right() const { return right_; }
  std::uint32_t top() const { return top_; }
  std::uint32_t bottom() const { return bottom_; }

  // Rows must come in order, starting with top(); `row` begins with column left() and must stay
  // valid as long as later outputs need it: for window() more rows.
  void push(std::uint32_t y, const std::uint8_t *row);
  std::uint32_t window() const { return window_; }
  // Writes the remaining outputs, after the last row.
  void finish();

 private:
  void emit(int i);
  void emit_wide(int taps, std::size_t n, std::size_t black, std::uint8_t *out);

  Axis across_, down_;
  int size_ = 0, next_ = 0;
  std::uint32_t left_ = 0, right_ = 0, top_ = 0, bottom_ = 0, window_ = 0;
  std::uint8_t *out_ = nullptr;
  std::vector<const std::uint8_t *> ring_, taps_;
  std::vector<std::int16_t> row_weights_;
  std::vector<std::int32_t> wide_weights_;
  std::vector<std::int32_t> line_, first_, pairs_;
  bool wide_ = false;
};

}  // namespace fastrot
