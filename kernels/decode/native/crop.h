// Crops one sample: a box of a JPEG or of raw pixels becomes a square of size x size RGB pixels.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "jpeg.h"
#include "resize.h"
#include "restart.h"

namespace fastrot {

struct CropRequest {
  Box box;                    // in the upright image
  std::uint32_t width = 0;    // of the upright image
  std::uint32_t height = 0;
  int orientation = 1;        // EXIF, 1 to 8: how the stored pixels become upright
  int size = 0;
  bool raw = false;           // rows of RGB instead of a JPEG
  bool colour_only = false;   // refuse a JPEG without three components or with bytes after its end
  bool to_end = true;         // read a JPEG beyond the box as well
  bool exact = true;          // never shrink in the DCT domain
  std::uint64_t max_pixels = 0;
};

// Crops samples on one thread, and keeps its memory from one to the next.
class Cropper : RowSink {
 public:
  // Fills `out`, (size, size, 3), and returns true; if it cannot, `message()` says why. Throws
  // std::bad_alloc.
  bool crop(const std::uint8_t *data, std::size_t size, const CropRequest &request,
            std::uint8_t *out);
  const char *message() const { return message_; }

  // Decodes what `crop` would decode and discards it: the limit of any loader with this decoder.
  bool only_decode(const std::uint8_t *data, std::size_t size, const CropRequest &request);

  // Gives up a sample whose cropping was left by a longjmp.
  void abandon() { decoder_.abandon(); }

 private:
  bool choose(std::uint32_t width, std::uint32_t height, JpegPart *part) override;
  std::uint8_t *row(std::uint32_t y, std::uint32_t column, std::uint32_t pixels) override;
  void done(std::uint32_t y) override;
  bool refuse(const char *message);
  void leave_out_what_lies_around(const std::uint8_t **data, std::size_t *size,
                                  std::uint32_t *width, std::uint32_t *height);
  bool run(const std::uint8_t *data, std::size_t size, const CropRequest &request,
           std::uint8_t *out);

  JpegDecoder decoder_;
  Resizer resizer_;
  RestartCutter cutter_;
  Box stored_{};             // box in the stored image
  int size_ = 0;
  unsigned denominator_ = 1;
  bool resizes_ = true;
  std::uint8_t *target_ = nullptr;
  std::vector<std::uint8_t> rows_, turned_;
  std::size_t stride_ = 0, skip_ = 0;
  std::uint32_t window_ = 1;
  const char *message_ = "";
};

}  // namespace fastrot
