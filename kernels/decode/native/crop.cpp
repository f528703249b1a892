#include "crop.h"

#include <algorithm>
#include <new>

namespace fastrot {

namespace {

bool lies_on_its_side(int orientation) { return orientation >= 5; }
bool is_upside_down(int orientation) {
  return orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
}
bool is_mirrored(int orientation) {
  return orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
}

// Maps a box of the upright image to the stored one (CIPA DC-008: a transposition, then a reversal
// of the rows, then one of the columns, make stored pixels upright).
Box stored_box(const CropRequest &request) {
  Box box = request.box;
  const auto width = static_cast<std::int32_t>(request.width);
  const auto height = static_cast<std::int32_t>(request.height);
  if (is_mirrored(request.orientation)) box.left = width - box.left - box.width;
  if (is_upside_down(request.orientation)) box.top = height - box.top - box.height;
  if (lies_on_its_side(request.orientation)) {
    std::swap(box.left, box.top);
    std::swap(box.width, box.height);
  }
  return box;
}

void turn_upright(const std::uint8_t *from, int size, int orientation, std::uint8_t *to) {
  for (int y = 0; y < size; ++y) {
    for (int x = 0; x < size; ++x, to += 3) {
      int row = is_upside_down(orientation) ? size - 1 - y : y;
      int column = is_mirrored(orientation) ? size - 1 - x : x;
      if (lies_on_its_side(orientation)) std::swap(row, column);
      const std::uint8_t *pixel = from + (std::ptrdiff_t{row} * size + column) * 3;
      std::copy_n(pixel, 3, to);
    }
  }
}

}  // namespace

bool Cropper::refuse(const char *message) {
  message_ = message;
  return false;
}

bool Cropper::crop(const std::uint8_t *data, std::size_t size, const CropRequest &request,
                   std::uint8_t *out) {
  resizes_ = true;
  if (request.orientation == 1) return run(data, size, request, out);
  const auto side = static_cast<std::size_t>(request.size);
  turned_.resize(side * side * 3);
  if (!run(data, size, request, turned_.data())) return false;
  turn_upright(turned_.data(), request.size, request.orientation, out);
  return true;
}

bool Cropper::only_decode(const std::uint8_t *data, std::size_t size,
                          const CropRequest &request) {
  resizes_ = false;
  return run(data, size, request, nullptr);
}

bool Cropper::run(const std::uint8_t *data, std::size_t size, const CropRequest &request,
                  std::uint8_t *out) {
  stored_ = stored_box(request);
  size_ = request.size;
  target_ = out;
  denominator_ = 1;
  std::uint32_t width = request.width, height = request.height;
  if (lies_on_its_side(request.orientation)) std::swap(width, height);
  if (request.raw) {
    const std::uint64_t row = std::uint64_t{width} * 3;
    if (size != row * height) return refuse("not 3 x width x height bytes");
    resizer_.begin(stored_, size_, 1, width, height, out);
    const std::uint8_t *at = data + std::uint64_t{resizer_.left()} * 3;
    if (resizes_) {
      for (std::uint32_t y = resizer_.top(); y < resizer_.bottom(); ++y) {
        resizer_.push(y, at + y * row);
      }
      resizer_.finish();
    }
    return true;
  }
  if (request.colour_only && (size < 2 || data[size - 2] != 0xff || data[size - 1] != JPEG_EOI)) {
    return refuse("truncated JPEG: no end marker in the last two bytes");
  }
  if (!request.to_end && resizes_) leave_out_what_lies_around(&data, &size, &width, &height);
  JpegRequest jpeg;
  jpeg.max_pixels = request.max_pixels;
  jpeg.width = width;
  jpeg.height = height;
  jpeg.in_part = true;
  jpeg.colour_only = request.colour_only;
  jpeg.to_end = request.to_end;
  if (!request.exact) {
    const std::int32_t shorter = std::min(stored_.width, stored_.height);
    while (denominator_ < 8 &&
           shorter / static_cast<std::int32_t>(2 * denominator_) >= size_) {
      denominator_ *= 2;
    }
  }
  jpeg.denominator = denominator_;
  if (!decoder_.decode(data, size, jpeg, *this)) {
    if (decoder_.out_of_memory()) throw std::bad_alloc();
    return refuse(decoder_.message());
  }
  if (resizes_) resizer_.finish();
  return true;
}

// If the JPEG has restart markers, replaces it by the part that the box needs.
void Cropper::leave_out_what_lies_around(const std::uint8_t **data, std::size_t *size,
                                         std::uint32_t *width, std::uint32_t *height) {
  const auto within = [](std::int64_t value, std::uint32_t most) {
    return std::clamp<std::int64_t>(value, 0, most);
  };
  const Region region{within(stored_.left, *width), within(stored_.top, *height),
                      within(std::int64_t{stored_.left} + stored_.width, *width),
                      within(std::int64_t{stored_.top} + stored_.height, *height)};
  if (region.left >= region.right || region.top >= region.bottom) return;
  if (!cutter_.cut(*data, *size, *width, *height, region)) return;
  *data = cutter_.data();
  *size = cutter_.size();
  *width = cutter_.width();
  *height = cutter_.height();
  stored_.left -= static_cast<std::int32_t>(cutter_.left());
  stored_.top -= static_cast<std::int32_t>(cutter_.top());
}

bool Cropper::choose(std::uint32_t width, std::uint32_t height, JpegPart *part) {
  try {
    resizer_.begin(stored_, size_, denominator_, width, height, target_);
    part->left = resizer_.left();
    part->right = resizer_.right();
    part->top = resizer_.top();
    part->bottom = resizer_.bottom();
    if (part->left >= part->right || part->top >= part->bottom) {
      // The box is outside the image: one pixel is decoded, so that damage is still found.
      *part = JpegPart{0, 0, 1, 1};
    }
    window_ = resizer_.window() + 1;
    stride_ = (std::size_t{width} + 16) * 3;
    if (rows_.size() < stride_ * window_) rows_.resize(stride_ * window_);
  } catch (const std::bad_alloc &) {
    return false;
  }
  return true;
}

std::uint8_t *Cropper::row(std::uint32_t y, std::uint32_t column, std::uint32_t) {
  // If the box is outside the image, left() may be less than the column.
  skip_ = resizer_.left() > column ? (resizer_.left() - column) * std::size_t{3} : 0;
  return rows_.data() + (y % window_) * stride_;
}

void Cropper::done(std::uint32_t y) {
  if (!resizes_ || y < resizer_.top() || y >= resizer_.bottom()) return;
  resizer_.push(y, rows_.data() + (y % window_) * stride_ + skip_);
}

}  // namespace fastrot
