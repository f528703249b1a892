// Decodes one whole JPEG to RGB pixels, for kernels/decode/op.py.

#include <cstdlib>
#include <new>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "jpeg.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pixels = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<3>, nb::c_contig>;

// Stores all rows, one after the other, in its own memory.
class WholeImage : public fastrot::RowSink {
 public:
  ~WholeImage() override { std::free(pixels_); }

  bool choose(std::uint32_t width, std::uint32_t height, fastrot::JpegPart *part) override {
    width_ = width;
    height_ = height;
    *part = {0, 0, width, height};
    pixels_ = static_cast<std::uint8_t *>(std::malloc(std::size_t{width} * height * 3));
    return pixels_ != nullptr;
  }
  std::uint8_t *row(std::uint32_t y, std::uint32_t, std::uint32_t) override {
    return pixels_ + std::size_t{y} * width_ * 3;
  }
  void done(std::uint32_t) override {}

  std::uint32_t width() const { return width_; }
  std::uint32_t height() const { return height_; }
  std::uint8_t *release() {
    std::uint8_t *pixels = pixels_;
    pixels_ = nullptr;
    return pixels;
  }

 private:
  std::uint32_t width_ = 0, height_ = 0;
  std::uint8_t *pixels_ = nullptr;
};

Pixels decode_jpeg(const Bytes &data, std::uint64_t max_pixels, unsigned denominator) {
  WholeImage image;
  fastrot::JpegRequest request;
  request.max_pixels = max_pixels;
  request.denominator = denominator;
  request.in_part = denominator > 1;
  {
    const nb::gil_scoped_release unlocked;
    fastrot::JpegDecoder decoder;
    if (!decoder.decode(data.data(), data.size(), request, image)) {
      const nb::gil_scoped_acquire locked;
      if (decoder.out_of_memory()) throw std::bad_alloc();
      throw nb::value_error(decoder.message());
    }
  }
  const std::size_t shape[3] = {image.height(), image.width(), 3};
  std::uint8_t *pixels = image.release();
  const nb::capsule owner(pixels, [](void *memory) noexcept { std::free(memory); });
  return Pixels(pixels, 3, shape, owner);
}

}  // namespace

void bind_decode(nb::module_ &module) {
  using namespace nb::literals;
  module.def("decode_jpeg", &decode_jpeg, "data"_a.noconvert(), "max_pixels"_a,
             "denominator"_a);
  module.attr("libjpeg_version") = fastrot::kJpegVersion;
}
