// Cuts the part of a JPEG around a box out of it, without decoding the rest.
//
// Entropy-coded data can only be read from the front, except that a decoder can start at restart
// markers. `fastrot prepare` writes one every few blocks, a whole number of times per row. The
// intervals that touch a box form a smaller JPEG, with a header that gives its size, and its pixels
// equal those of the whole image bit for bit.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastrot {

// Columns [left, right) and rows [top, bottom) of the image that are needed.
struct Region {
  std::int64_t left, top, right, bottom;
};

class RestartCutter {
 public:
  // Makes the smaller JPEG, if it can. False: the JPEG has no such markers, is not baseline, breaks
  // a rule or is not `width` x `height`; the whole JPEG is then decoded, or refused.
  bool cut(const std::uint8_t *data, std::size_t size, std::uint32_t width, std::uint32_t height,
           const Region &region);

  const std::uint8_t *data() const { return out_.data(); }
  std::size_t size() const { return size_; }
  // Column and row of its first pixel in the whole image, its width and its height.
  std::uint32_t left() const { return left_; }
  std::uint32_t top() const { return top_; }
  std::uint32_t width() const { return width_; }
  std::uint32_t height() const { return height_; }

 private:
  struct Layout {
    std::size_t frame = 0;         // offset of height and width
    std::size_t entropy = 0;       // offset of the entropy-coded data
    std::uint32_t width = 0, height = 0;
    std::uint32_t block_w = 0, block_h = 0;  // pixels per block of all components (an MCU)
    std::uint32_t across = 0, down = 0;      // number of such blocks
    std::uint32_t interval = 0;              // number of such blocks between two markers
  };

  static bool read_layout(const std::uint8_t *data, std::size_t size, Layout *layout);
  bool find_intervals(const std::uint8_t *data, std::size_t size, const Layout &layout);
  void copy(const std::uint8_t *from, std::size_t count);

  std::vector<std::size_t> starts_;  // offsets of the intervals, and of the end of the last marker
  std::vector<std::uint8_t> out_;
  std::size_t size_ = 0;
  std::uint32_t left_ = 0, top_ = 0, width_ = 0, height_ = 0;
};

}  // namespace fastrot
