// libFuzzer target: any bytes, any box. tests/fuzz/README.md has the command.
//
// The first bytes of an input say what is asked for, the rest is the sample. A crop that is
// delivered must be the same the second time, and with the portable passes: nothing may depend on
// what a decoder or a buffer held before.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../kernels/decode/native/crop.h"

namespace {

using fastrot::Box;
using fastrot::Cropper;
using fastrot::CropRequest;

struct Asked {
  std::int16_t left, top;
  std::uint16_t width, height;            // of the box
  std::uint16_t image_width, image_height;  // 0: as the JPEG says
  std::uint8_t size, orientation, flags, unused;
};

// Width and height as the first frame header says, so that inputs get past the first check.
void announced(const std::uint8_t *data, std::size_t size, CropRequest *request) {
  for (std::size_t i = 0; i + 9 < size; ++i) {
    if (data[i] == 0xff && (data[i + 1] == 0xc0 || data[i + 1] == 0xc1 || data[i + 1] == 0xc2)) {
      request->height = static_cast<std::uint32_t>(data[i + 5] << 8 | data[i + 6]);
      request->width = static_cast<std::uint32_t>(data[i + 7] << 8 | data[i + 8]);
      return;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  Asked asked;
  if (size < sizeof asked) return 0;
  std::memcpy(&asked, data, sizeof asked);
  // In a block of its own, so that reading beyond its end is seen.
  const std::vector<std::uint8_t> sample(data + sizeof asked, data + size);

  CropRequest request;
  request.box = Box{asked.left, asked.top, 1 + asked.width % 4096, 1 + asked.height % 4096};
  request.width = asked.image_width;
  request.height = asked.image_height;
  request.raw = asked.flags & 1;
  request.to_end = asked.flags & 2;
  request.exact = asked.flags & 4;
  request.colour_only = asked.flags & 8;
  request.orientation = 1 + asked.orientation % 8;
  request.size = 1 + asked.size % 64;
  request.max_pixels = 1 << 20;
  if (!request.raw && (request.width == 0 || request.height == 0)) {
    announced(sample.data(), sample.size(), &request);
    if (request.orientation >= 5) std::swap(request.width, request.height);
  }
  if (request.width == 0 || request.height == 0) return 0;

  static Cropper used;  // has seen every input before
  const std::size_t bytes = static_cast<std::size_t>(request.size * request.size) * 3;
  std::vector<std::uint8_t> first(bytes, 1), second(bytes, 2);
  const bool sound = used.crop(sample.data(), sample.size(), request, first.data());
  Cropper fresh;
  if (fresh.crop(sample.data(), sample.size(), request, second.data()) != sound) {
    std::fprintf(stderr, "sound once, and once not\n");
    std::abort();
  }
  if (sound && first != second) {
    std::fprintf(stderr, "two crops of the same sample differ\n");
    std::abort();
  }
  return 0;
}
