#include "restart.h"

#include <algorithm>
#include <cstring>

namespace fastrot {

namespace {

constexpr std::uint8_t kSof0 = 0xc0, kDht = 0xc4, kRst0 = 0xd0, kEoi = 0xd9, kSos = 0xda,
                       kDqt = 0xdb, kDri = 0xdd, kApp0 = 0xe0, kApp15 = 0xef, kCom = 0xfe;

std::uint32_t two_bytes(const std::uint8_t *at) {
  return static_cast<std::uint32_t>(at[0] << 8 | at[1]);
}

void put_two_bytes(std::uint8_t *at, std::uint32_t value) {
  at[0] = static_cast<std::uint8_t>(value >> 8);
  at[1] = static_cast<std::uint8_t>(value);
}

std::uint32_t blocks(std::uint32_t pixels, std::uint32_t block) {
  return (pixels + block - 1) / block;
}

}  // namespace

bool RestartCutter::cut(const std::uint8_t *data, std::size_t size, std::uint32_t width,
                        std::uint32_t height, const Region &region) {
  Layout layout;
  if (!read_layout(data, size, &layout)) return false;
  if (layout.width != width || layout.height != height) return false;
  // One more block on each side: chroma is smoothed across their borders.
  const auto first = [](std::int64_t pixel, std::uint32_t block) {
    return static_cast<std::uint32_t>(std::max<std::int64_t>(0, pixel / block - 1));
  };
  const auto behind = [](std::int64_t pixel, std::uint32_t block, std::uint32_t most) {
    return static_cast<std::uint32_t>(std::min<std::int64_t>(most, (pixel - 1) / block + 2));
  };
  const std::uint32_t row0 = first(region.top, layout.block_h);
  const std::uint32_t row1 = behind(region.bottom, layout.block_h, layout.down);
  const std::uint32_t across = layout.across / layout.interval;  // intervals per row
  const std::uint32_t column0 = first(region.left, layout.block_w) / layout.interval;
  const std::uint32_t column1 =
      blocks(behind(region.right, layout.block_w, layout.across), layout.interval);
  const std::uint64_t kept = std::uint64_t{row1 - row0} * (column1 - column0);
  // The whole image would also be read only to row1; the saving must be worth the copy.
  if (kept * 20 > std::uint64_t{row1} * across * 19) return false;
  if (!find_intervals(data, size, layout)) return false;

  const std::uint32_t columns = layout.interval * layout.block_w;  // pixels per interval
  left_ = column0 * columns;
  top_ = row0 * layout.block_h;
  width_ = std::min(column1 * columns, layout.width) - left_;
  height_ = std::min(row1 * layout.block_h, layout.height) - top_;
  const std::size_t last = std::size_t{row1 - 1} * across + column1;
  const std::size_t most = layout.entropy + (starts_[last] - layout.entropy) + 2;
  if (out_.size() < most) out_.resize(most);
  size_ = 0;
  copy(data, layout.entropy);
  put_two_bytes(out_.data() + layout.frame, height_);
  put_two_bytes(out_.data() + layout.frame + 2, width_);
  std::uint32_t number = 0;
  for (std::uint32_t row = row0; row < row1; ++row) {
    for (std::uint32_t column = column0; column < column1; ++column) {
      const std::size_t interval = std::size_t{row} * across + column;
      copy(data + starts_[interval], starts_[interval + 1] - starts_[interval]);
      // Each ends with its marker, which gets a new number; the last becomes the end marker.
      out_[size_ - 1] = static_cast<std::uint8_t>(kRst0 + number++ % 8);
    }
  }
  out_[size_ - 1] = kEoi;
  return true;
}

bool RestartCutter::read_layout(const std::uint8_t *data, std::size_t size, Layout *layout) {
  if (size < 4 || data[0] != 0xff || data[1] != 0xd8) return false;
  int components = 0;
  for (std::size_t at = 2; at + 4 <= size;) {
    if (data[at] != 0xff) return false;
    const std::uint8_t marker = data[at + 1];
    const std::size_t length = two_bytes(data + at + 2);
    const std::uint8_t *body = data + at + 4;
    if (length < 2 || length > size - at - 2) return false;
    if (marker == kSof0) {
      if (components || length < 8 || body[0] != 8) return false;
      components = body[5];
      if (length != 8 + 3 * static_cast<std::size_t>(components)) return false;
      // A single component has its own block size, whatever its sampling factors are.
      if (components != 3) return false;
      layout->frame = at + 5;
      layout->height = two_bytes(body + 1);
      layout->width = two_bytes(body + 3);
      std::uint32_t most_h = 0, most_v = 0;
      for (int k = 0; k < components; ++k) {
        most_h = std::max<std::uint32_t>(most_h, body[7 + 3 * k] >> 4);
        most_v = std::max<std::uint32_t>(most_v, body[7 + 3 * k] & 15);
      }
      if (!most_h || !most_v || most_h > 4 || most_v > 4 || !layout->width || !layout->height) {
        return false;
      }
      layout->block_w = 8 * most_h;
      layout->block_h = 8 * most_v;
      layout->across = blocks(layout->width, layout->block_w);
      layout->down = blocks(layout->height, layout->block_h);
    } else if (marker == kDri) {
      if (length != 4) return false;
      layout->interval = two_bytes(body);
    } else if (marker == kSos) {
      if (!components || length != 6 + 2 * static_cast<std::size_t>(components) ||
          body[0] != components) {
        return false;
      }
      layout->entropy = at + 2 + length;
      return layout->interval > 0 && layout->across % layout->interval == 0 &&
             layout->interval < layout->across * std::uint64_t{layout->down};
    } else if (marker != kDht && marker != kDqt && marker != kCom &&
               !(marker >= kApp0 && marker <= kApp15)) {
      return false;  // another process, or a segment that this code does not know
    }
    at += 2 + length;
  }
  return false;
}

bool RestartCutter::find_intervals(const std::uint8_t *data, std::size_t size,
                                   const Layout &layout) {
  const std::size_t count =
      std::size_t{layout.across} * layout.down / layout.interval;
  if (count > size / 2) return false;  // each has a marker
  starts_.clear();
  starts_.reserve(count + 1);
  starts_.push_back(layout.entropy);
  const std::uint8_t *at = data + layout.entropy, *const end = data + size;
  while (starts_.size() <= count) {
    at = static_cast<const std::uint8_t *>(
        std::memchr(at, 0xff, static_cast<std::size_t>(end - at)));
    if (!at || end - at < 2) return false;
    if (at[1] != 0) {
      const bool is_last = starts_.size() == count;
      const std::uint8_t expected =
          is_last ? kEoi : static_cast<std::uint8_t>(kRst0 + (starts_.size() - 1) % 8);
      if (at[1] != expected) return false;
      starts_.push_back(static_cast<std::size_t>(at - data) + 2);
    }
    at += 2;
  }
  return true;
}

void RestartCutter::copy(const std::uint8_t *from, std::size_t count) {
  std::memcpy(out_.data() + size_, from, count);
  size_ += count;
}

}  // namespace fastrot
