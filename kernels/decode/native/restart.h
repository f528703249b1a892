// The part of a JPEG around a box, without decoding what lies around it.
//
// Entropy-coded data can only be read from the front, unless they have restart markers: there the
// decoder begins anew. `fastrot prepare` writes one every few blocks, a whole number of times a
// row. The intervals that touch a box then make a smaller JPEG of their own, with a header that
// says its size, and its pixels are those of the whole image, bit for bit.

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
  // Whether the smaller JPEG is there. False where this one has no such markers, is not baseline,
  // breaks a rule or is not `width` x `height`: the whole one is then decoded, or refused.
  bool cut(const std::uint8_t *data, std::size_t size, std::uint32_t width, std::uint32_t height,
           const Region &region);

  const std::uint8_t *data() const { return out_.data(); }
  std::size_t size() const { return size_; }
  // Of its first pixel, in the whole image; its width and height.
  std::uint32_t left() const { return left_; }
  std::uint32_t top() const { return top_; }
  std::uint32_t width() const { return width_; }
  std::uint32_t height() const { return height_; }

 private:
  struct Layout {
    std::size_t frame = 0;         // where height and width stand
    std::size_t entropy = 0;       // where the entropy-coded data begin
    std::uint32_t width = 0, height = 0;
    std::uint32_t block_w = 0, block_h = 0;  // pixels of a block of all components (an MCU)
    std::uint32_t across = 0, down = 0;      // such blocks
    std::uint32_t interval = 0;              // of them between two markers
  };

  static bool read_layout(const std::uint8_t *data, std::size_t size, Layout *layout);
  bool find_intervals(const std::uint8_t *data, std::size_t size, const Layout &layout);
  void copy(const std::uint8_t *from, std::size_t count);

  std::vector<std::size_t> starts_;  // of the intervals, and the end of the last one's marker
  std::vector<std::uint8_t> out_;
  std::size_t size_ = 0;
  std::uint32_t left_ = 0, top_ = 0, width_ = 0, height_ = 0;
};

}  // namespace fastrot
