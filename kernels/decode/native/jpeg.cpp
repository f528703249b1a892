#include "jpeg.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <jerror.h>

namespace fastrot {

namespace {

// Every scan of a progressive image visits all its blocks, so a small file with thousands of empty
// scans could keep a core busy for hours. Encoders write about ten.
constexpr int kMaxScans = 100;

// Columns on either side of the part, for chroma smoothing; more than it needs.
constexpr std::uint32_t kMargin = 2;

#define FASTROT_STRING_(x) #x
#define FASTROT_STRING(x) FASTROT_STRING_(x)

// Returns whether libjpeg can shrink an image with these sampling factors and skip its rows and
// columns. It can for those that encoders use; with others it loses its place or never returns.
bool is_ordinary(const jpeg_decompress_struct &info) {
  for (int k = 1; k < info.num_components; ++k) {
    const jpeg_component_info &component = info.comp_info[k];
    const bool like_first = k == 3 && component.h_samp_factor == info.comp_info[0].h_samp_factor &&
                            component.v_samp_factor == info.comp_info[0].v_samp_factor;
    if (!like_first && (component.h_samp_factor != 1 || component.v_samp_factor != 1)) return false;
  }
  if (info.num_components == 1) return true;  // its sampling means nothing
  const int h = info.comp_info[0].h_samp_factor, v = info.comp_info[0].v_samp_factor;
  return (v == 1 && (h == 1 || h == 2 || h == 4)) || (v == 2 && (h == 1 || h == 2));
}

// Returns whether all pixels are correct despite this warning (other messages are traces):
// NOT_SEQUENTIAL  spectral selection in the scan header of a sequential JPEG, which is ignored;
//                 cameras write zeros there
// JFIF_MAJOR      an unknown revision of JFIF, which affects only the density and a thumbnail
// After all other warnings pixels may be wrong, or are a guess:
// ADOBE_XFORM        an unknown colour transform; YCbCr is guessed
// BOGUS_PROGRESSION  coefficients that are refined before they exist, or twice
// EXTRANEOUS_DATA    bytes before a marker: most often the rest of a scan in which the decoder lost
//                    its place, zeros as well as text. Nothing after the end marker is read.
// HIT_MARKER, JPEG_EOF, HUFF_BAD_CODE, ARITH_BAD_CODE   missing or damaged data, shown as grey
// MUST_RESYNC        a missing or misplaced restart marker: which blocks are lost is guessed
// TOO_MUCH_DATA, BOGUS_ICC   results of calls that are not made here
bool touches_no_pixel(int warning) {
  return warning == JWRN_NOT_SEQUENTIAL || warning == JWRN_JFIF_MAJOR;
}

// Converts a row of CMYK as Adobe stores it (255 is no ink) to RGB, by Pillow's integer rule.
void cmyk_row_to_rgb(const JSAMPLE *cmyk, std::size_t width, std::uint8_t *rgb) {
  for (std::size_t x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const unsigned light = cmyk[3];
    for (int channel = 0; channel < 3; ++channel) {
      const unsigned product = (255u - cmyk[channel]) * light + 128u;
      rgb[channel] = static_cast<std::uint8_t>(light - ((product + (product >> 8)) >> 8));
    }
  }
}

}  // namespace

const char *const kJpegVersion = FASTROT_STRING(LIBJPEG_TURBO_VERSION);

// With the address sanitizer, each allocation is a separate block, so that accesses beyond its end
// are detected.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kOneBlock = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kOneBlock = false;
#else
constexpr bool kOneBlock = true;
#endif
#else
constexpr bool kOneBlock = true;
#endif

// libjpeg allocates the memory of each image and frees it afterwards. These functions replace its
// own for that pool with a block that only grows and is reused for the next image. Its virtual
// arrays (coefficients of progressive images) are not affected.
struct JpegDecoder::Arena {
  static constexpr std::size_t kAlign = 64;      // libjpeg's SIMD needs 32
  static constexpr std::size_t kFirst = 1 << 20;  // enough for most baseline images

  std::uint8_t *block = nullptr;
  std::size_t capacity = 0, used = 0;
  std::size_t wanted = 0;                // bytes this image asked for, including what did not fit
  bool begun = false;  // libjpeg's permanent allocations are now only the tables of this image
  std::uint8_t *overflow = nullptr;      // linked list of blocks; each begins with the next pointer
  jpeg_memory_mgr original;              // libjpeg's own functions

  ~Arena() {
    free_overflow();
    std::free(block);
  }

  void *take(std::size_t size) {
    size = (size + kAlign - 1) / kAlign * kAlign;
    wanted += size;
    if (kOneBlock && used + size <= capacity) {
      void *memory = block + used;
      used += size;
      return memory;
    }
    auto *single = static_cast<std::uint8_t *>(std::aligned_alloc(kAlign, size + kAlign));
    if (!single) return nullptr;
    std::memcpy(single, &overflow, sizeof overflow);
    overflow = single;
    return single + kAlign;
  }

  void clear() {
    free_overflow();
    if (kOneBlock && wanted > capacity) {  // fits next time; if this fails, it overflows again
      std::free(block);
      capacity = std::max(wanted, kFirst);
      block = static_cast<std::uint8_t *>(std::aligned_alloc(kAlign, capacity));
      if (!block) capacity = 0;
    }
    used = wanted = 0;
  }

  void free_overflow() {
    while (overflow) {
      std::uint8_t *next;
      std::memcpy(&next, overflow, sizeof next);
      std::free(overflow);
      overflow = next;
    }
  }

  static Arena &of(j_common_ptr info) { return *JpegDecoder::of(info).arena_; }

  static void *take_or_fail(j_common_ptr info, std::size_t size) {
    void *memory = of(info).take(size);
    if (!memory) ERREXIT1(info, JERR_OUT_OF_MEMORY, 11);
    return memory;
  }

  static void *alloc(j_common_ptr info, int pool, std::size_t size) {
    if (pool != JPOOL_IMAGE && !of(info).begun) {
      return of(info).original.alloc_small(info, pool, size);
    }
    return take_or_fail(info, size);
  }

  static JSAMPARRAY alloc_rows(j_common_ptr info, int pool, JDIMENSION width, JDIMENSION rows) {
    if (pool != JPOOL_IMAGE) return of(info).original.alloc_sarray(info, pool, width, rows);
    // SIMD code writes whole vectors, so a row has room for at least one more after its width.
    const std::size_t row = (std::size_t{width} + 2 * kAlign - 1) / kAlign * kAlign;
    auto *array = static_cast<JSAMPARRAY>(take_or_fail(info, rows * sizeof(JSAMPROW)));
    auto *samples = static_cast<JSAMPROW>(take_or_fail(info, rows * row));
    for (JDIMENSION y = 0; y < rows; ++y) array[y] = samples + y * row;
    return array;
  }

  static JBLOCKARRAY alloc_blocks(j_common_ptr info, int pool, JDIMENSION width,
                                  JDIMENSION rows) {
    if (pool != JPOOL_IMAGE) return of(info).original.alloc_barray(info, pool, width, rows);
    auto *array = static_cast<JBLOCKARRAY>(take_or_fail(info, rows * sizeof(JBLOCKROW)));
    auto *blocks = static_cast<JBLOCKROW>(
        take_or_fail(info, std::size_t{width} * rows * sizeof(JBLOCK)));
    for (JDIMENSION y = 0; y < rows; ++y) array[y] = blocks + std::size_t{y} * width;
    return array;
  }

  static void free_pool(j_common_ptr info, int pool) {
    Arena &arena = of(info);
    arena.original.free_pool(info, pool);  // its virtual arrays
    if (pool == JPOOL_IMAGE) arena.clear();
  }

  void install(jpeg_memory_mgr *memory) {
    original = *memory;
    memory->alloc_small = alloc;
    memory->alloc_large = alloc;
    memory->alloc_sarray = alloc_rows;
    memory->alloc_barray = alloc_blocks;
    memory->free_pool = free_pool;
  }
};

JpegDecoder &JpegDecoder::of(j_common_ptr info) {
  return *static_cast<JpegDecoder *>(info->client_data);
}

void JpegDecoder::fail(const char *message) {
  std::snprintf(message_, sizeof message_, "%s", message);
  std::longjmp(failed_, 1);
}

void JpegDecoder::on_error(j_common_ptr info) {
  JpegDecoder &decoder = of(info);
  info->err->format_message(info, decoder.message_);
  decoder.out_of_memory_ = info->err->msg_code == JERR_OUT_OF_MEMORY;
  std::longjmp(decoder.failed_, 1);
}

void JpegDecoder::on_message(j_common_ptr info, int level) {
  if (level < 0 && !touches_no_pixel(info->err->msg_code)) on_error(info);
}

void JpegDecoder::on_progress(j_common_ptr common) {
  JpegDecoder &decoder = of(common);
  const jpeg_decompress_struct &info = decoder.info_;
  if (info.input_scan_number > kMaxScans) {
    decoder.fail("more than 100 scans, which only a hostile file has");
  }
  if (info.Ss != 0) return;  // a scan without DC coefficients
  for (int k = 0; k < info.comps_in_scan; ++k) {
    decoder.component_seen_[info.cur_comp_info[k]->component_index] = true;
  }
}

JpegDecoder::JpegDecoder() {
  std::memset(&info_, 0, sizeof info_);
  message_[0] = '\0';
}

JpegDecoder::~JpegDecoder() {
  if (created_) jpeg_destroy_decompress(&info_);
  delete arena_;
}

void JpegDecoder::abandon() {
  if (created_) jpeg_abort_decompress(&info_);
}

bool JpegDecoder::decode(const std::uint8_t *data, std::size_t size, const JpegRequest &request,
                         RowSink &sink) {
  // No object with a destructor may live in here or in callees: errors leave by longjmp.
  out_of_memory_ = false;
  std::memset(component_seen_, 0, sizeof component_seen_);
  if (!arena_) arena_ = new Arena;
  info_.err = jpeg_std_error(&errors_);
  errors_.error_exit = on_error;
  errors_.emit_message = on_message;
  progress_.progress_monitor = on_progress;
  info_.client_data = this;
  if (setjmp(failed_)) {
    abandon();
    return false;
  }
  if (!created_) {
    jpeg_create_decompress(&info_);
    created_ = true;
    arena_->install(info_.mem);
  }
  info_.progress = &progress_;
  forget_tables();
  jpeg_mem_src(&info_, data, static_cast<unsigned long>(size));
  arena_->begun = true;
  read_header(request);
  const auto shrunk = [&](std::uint32_t side) {
    return (side + request.denominator - 1) / request.denominator;
  };
  JpegPart part;
  if (!sink.choose(shrunk(info_.image_width), shrunk(info_.image_height), &part)) {
    fail("too little memory");
  }
  read_part(sink, part);
  if (!request.to_end) {
    jpeg_abort_decompress(&info_);
    return true;
  }
  read_rest(part);
  return true;
}

// libjpeg keeps an image's tables for a later image that has none. Here such an image is damaged.
void JpegDecoder::forget_tables() {
  for (JQUANT_TBL *&table : info_.quant_tbl_ptrs) table = nullptr;
  for (JHUFF_TBL *&table : info_.dc_huff_tbl_ptrs) table = nullptr;
  for (JHUFF_TBL *&table : info_.ac_huff_tbl_ptrs) table = nullptr;
}

void JpegDecoder::read_header(const JpegRequest &request) {
  jpeg_read_header(&info_, TRUE);
  const std::uint64_t pixels = std::uint64_t{info_.image_width} * info_.image_height;
  if (pixels > request.max_pixels) fail("more pixels than the cap");
  if (info_.data_precision != 8) fail("not 8 bits per sample");
  if (info_.arith_code) fail("arithmetic coding");
  if (info_.num_components != 3) {
    if (request.colour_only) fail("not three components");
    if (info_.num_components != 1 && info_.num_components != 4) {
      fail("neither 1, 3 nor 4 components");
    }
  }
  if ((request.width && request.width != info_.image_width) ||
      (request.height && request.height != info_.image_height)) {
    fail("not the expected width and height");
  }
  if (request.in_part && !is_ordinary(info_)) fail("an unusual sampling of its colours");
  info_.out_color_space = info_.num_components == 4 ? JCS_CMYK : JCS_RGB;
  info_.dct_method = JDCT_ISLOW;
  // Smoothing would guess missing details of a progressive image, and differently within a part.
  info_.do_block_smoothing = FALSE;
  info_.scale_num = 1;
  info_.scale_denom = request.denominator;
}

void JpegDecoder::read_part(RowSink &sink, const JpegPart &part) {
  jpeg_start_decompress(&info_);
  if (part.left >= part.right || part.top >= part.bottom || part.right > info_.output_width ||
      part.bottom > info_.output_height) {
    fail("the part is outside the image");
  }
  JDIMENSION column = part.left > kMargin ? part.left - kMargin : 0;
  JDIMENSION pixels = std::min(part.right + kMargin, info_.output_width) - column;
  if (pixels < info_.output_width) {
    jpeg_crop_scanline(&info_, &column, &pixels);
  }
  if (part.top > 0 && jpeg_skip_scanlines(&info_, part.top) != part.top) {
    fail("the decoder stopped early");
  }
  JSAMPARRAY cmyk = nullptr;
  if (info_.out_color_space == JCS_CMYK) {
    cmyk = info_.mem->alloc_sarray(reinterpret_cast<j_common_ptr>(&info_), JPOOL_IMAGE,
                                   pixels * 4, 1);
  }
  for (std::uint32_t y = part.top; y < part.bottom; ++y) {
    std::uint8_t *out = sink.row(y, column, pixels);
    JSAMPROW row = cmyk ? cmyk[0] : out;
    if (jpeg_read_scanlines(&info_, &row, 1) != 1) fail("the decoder stopped early");
    if (cmyk) cmyk_row_to_rgb(row, pixels, out);
    sink.done(y);
  }
}

// Reads what follows the part, up to the end marker, so that damage there is found.
void JpegDecoder::read_rest(const JpegPart &part) {
  const JDIMENSION rest = info_.output_height - part.bottom;
  if (rest > 0) {
    // Skipping to the last row would not look at the data at all.
    if (rest > 1 && jpeg_skip_scanlines(&info_, rest - 1) != rest - 1) {
      fail("the decoder stopped early");
    }
    JSAMPARRAY last = info_.mem->alloc_sarray(
        reinterpret_cast<j_common_ptr>(&info_), JPOOL_IMAGE,
        info_.output_width * static_cast<JDIMENSION>(info_.output_components), 1);
    if (jpeg_read_scanlines(&info_, last, 1) != 1) fail("the decoder stopped early");
  }
  const bool many_scans = jpeg_has_multiple_scans(&info_);
  // After this the description of the image is gone.
  const int components = info_.num_components;
  jpeg_finish_decompress(&info_);
  if (many_scans) {
    for (int k = 0; k < components; ++k) {
      if (!component_seen_[k]) fail("a colour component has no scan");
    }
  }
}

}  // namespace fastrot
