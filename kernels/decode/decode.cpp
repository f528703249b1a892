// Strict JPEG decoding over libjpeg-turbo: sound pixels or an error, never something in between.
//
// libjpeg only warns when data are missing or damaged and then makes pixels up; here a warning is
// an error. Pixels equal those of Pillow: slow integer DCT, fancy upsampling, its CMYK rule.

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include <jpeglib.h>
#include <jerror.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace nb = nanobind;

namespace {

// Every scan of a progressive image visits each of its blocks, so a small file with thousands of
// empty scans could keep a core busy for hours. Encoders write about ten.
constexpr int kMaxScans = 100;

#define FASTROT_STRING_(x) #x
#define FASTROT_STRING(x) FASTROT_STRING_(x)
constexpr const char *kVersion = FASTROT_STRING(LIBJPEG_TURBO_VERSION);

// Everything that must survive a longjmp. Plain memory without destructors: a longjmp would skip
// them. `release` gives all of it back.
struct Decoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_progress_mgr progress;
  std::jmp_buf failed;
  char message[JMSG_LENGTH_MAX];
  bool out_of_memory;
  bool component_seen[MAX_COMPONENTS];
  std::uint8_t *pixels;  // (height, width, 3)
};

Decoder *decoder_of(j_common_ptr info) { return static_cast<Decoder *>(info->client_data); }

[[noreturn]] void fail(Decoder *decoder, const char *message) {
  std::snprintf(decoder->message, sizeof decoder->message, "%s", message);
  std::longjmp(decoder->failed, 1);
}

[[noreturn]] void on_error(j_common_ptr info) {
  Decoder *decoder = decoder_of(info);
  info->err->format_message(info, decoder->message);
  decoder->out_of_memory = info->err->msg_code == JERR_OUT_OF_MEMORY;
  std::longjmp(decoder->failed, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level < 0) on_error(info);  // a warning; the others are traces
}

void on_progress(j_common_ptr common) {
  Decoder *decoder = decoder_of(common);
  const jpeg_decompress_struct &info = decoder->info;
  if (info.input_scan_number > kMaxScans) {
    fail(decoder, "more than 100 scans, which only a hostile file has");
  }
  if (info.Ss != 0) return;  // a scan without DC coefficients
  for (int k = 0; k < info.comps_in_scan; ++k) {
    decoder->component_seen[info.cur_comp_info[k]->component_index] = true;
  }
}

// Rows of CMYK as Adobe stores them (255 is no ink) to RGB, by Pillow's integer rule.
void cmyk_row_to_rgb(const JSAMPLE *cmyk, std::size_t width, std::uint8_t *rgb) {
  for (std::size_t x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const unsigned light = cmyk[3];
    for (int channel = 0; channel < 3; ++channel) {
      const unsigned product = (255u - cmyk[channel]) * light + 128u;
      rgb[channel] = static_cast<std::uint8_t>(light - ((product + (product >> 8)) >> 8));
    }
  }
}

void read_rows(Decoder *decoder) {
  jpeg_decompress_struct &info = decoder->info;
  const std::size_t row_bytes = static_cast<std::size_t>(info.output_width) * 3;
  JSAMPARRAY cmyk = nullptr;
  if (info.out_color_space == JCS_CMYK) {
    cmyk = info.mem->alloc_sarray(reinterpret_cast<j_common_ptr>(&info), JPOOL_IMAGE,
                                  info.output_width * 4, 1);
  }
  while (info.output_scanline < info.output_height) {
    std::uint8_t *out = decoder->pixels + info.output_scanline * row_bytes;
    JSAMPROW row = cmyk ? cmyk[0] : out;
    if (jpeg_read_scanlines(&info, &row, 1) != 1) fail(decoder, "the decoder stopped early");
    if (cmyk) cmyk_row_to_rgb(row, info.output_width, out);
  }
}

// Whether `decoder->pixels` now holds the image; if not, `message` says why. No object with a
// destructor may live in here or below: errors leave by longjmp.
bool decode(Decoder *decoder, const std::uint8_t *data, std::size_t size,
            std::uint64_t max_pixels) {
  jpeg_decompress_struct &info = decoder->info;
  info.err = jpeg_std_error(&decoder->errors);
  decoder->errors.error_exit = on_error;
  decoder->errors.emit_message = on_message;
  decoder->progress.progress_monitor = on_progress;
  info.client_data = decoder;
  if (setjmp(decoder->failed)) return false;

  jpeg_create_decompress(&info);
  info.progress = &decoder->progress;
  jpeg_mem_src(&info, data, static_cast<unsigned long>(size));
  jpeg_read_header(&info, TRUE);
  const std::uint64_t pixels = std::uint64_t{info.image_width} * info.image_height;
  if (pixels > max_pixels) fail(decoder, "more pixels than the cap");
  if (info.data_precision != 8) fail(decoder, "not 8 bits a sample");
  if (info.arith_code) fail(decoder, "arithmetic coding");
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    fail(decoder, "neither 1, 3 nor 4 components");
  }
  info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_RGB;
  info.dct_method = JDCT_ISLOW;

  decoder->pixels = static_cast<std::uint8_t *>(std::malloc(pixels * 3));
  if (!decoder->pixels) {
    decoder->out_of_memory = true;
    return false;
  }
  const bool many_scans = jpeg_has_multiple_scans(&info);
  jpeg_start_decompress(&info);
  read_rows(decoder);
  jpeg_finish_decompress(&info);  // reads on to the end marker
  if (many_scans) {
    for (int k = 0; k < info.num_components; ++k) {
      if (!decoder->component_seen[k]) fail(decoder, "a colour component has no scan");
    }
  }
  return true;
}

void release(Decoder *decoder) {
  jpeg_destroy_decompress(&decoder->info);
  std::free(decoder->pixels);
}

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pixels = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<3>, nb::c_contig>;

Pixels decode_jpeg(const Bytes &data, std::uint64_t max_pixels) {
  Decoder decoder;
  std::memset(&decoder, 0, sizeof decoder);
  bool sound;
  {
    const nb::gil_scoped_release unlocked;
    sound = decode(&decoder, data.data(), data.size(), max_pixels);
    if (!sound) release(&decoder);
  }
  if (!sound) {
    if (decoder.out_of_memory) throw std::bad_alloc();
    throw nb::value_error(decoder.message);
  }
  std::uint8_t *pixels = decoder.pixels;
  const std::size_t shape[3] = {decoder.info.output_height, decoder.info.output_width, 3};
  decoder.pixels = nullptr;
  release(&decoder);
  const nb::capsule owner(pixels, [](void *memory) noexcept { std::free(memory); });
  return Pixels(pixels, 3, shape, owner);
}

}  // namespace

void bind_decode(nb::module_ &module) {
  using namespace nb::literals;
  module.def("decode_jpeg", &decode_jpeg, "data"_a.noconvert(), "max_pixels"_a);
  module.attr("libjpeg_version") = kVersion;
}
