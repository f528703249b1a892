// Strict JPEG decoding with libjpeg-turbo: sound pixels or an error, never anything in between.
//
// When data is missing or damaged, libjpeg only warns and then makes pixels up; here such a warning
// is an error (jpeg.cpp lists which). Pixels equal Pillow's: slow integer DCT, fancy upsampling,
// its CMYK rule. There is one exception: if a progressive image lacks its last scans, the details
// that they would have added are not guessed.

#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include <jpeglib.h>

namespace fastrot {

// Requirements on an image, and how it is to be decoded.
struct JpegRequest {
  std::uint64_t max_pixels = 0;
  std::uint32_t width = 0;   // as stored; 0: any
  std::uint32_t height = 0;  // as stored; 0: any
  bool colour_only = false;  // it must have three components
  bool in_part = false;      // the sink may choose a part, or the image is shrunk
  bool to_end = true;        // also read what follows the part, up to the end marker
  unsigned denominator = 1;  // 1, 2, 4 or 8: shrink in the DCT domain
};

// Columns [left, right) and rows [top, bottom) of the image, shrunk by the denominator.
struct JpegPart {
  std::uint32_t left, top, right, bottom;
};

// Receives rows. Its functions must not throw: they are called between libjpeg's stack frames.
class RowSink {
 public:
  virtual ~RowSink() = default;
  // Chooses a part, once the header is read, of the shrunk image of this size. False: give up.
  virtual bool choose(std::uint32_t width, std::uint32_t height, JpegPart *part) = 0;
  // Returns memory for row y, RGB, `pixels` wide; its first pixel is in column `column`.
  virtual std::uint8_t *row(std::uint32_t y, std::uint32_t column, std::uint32_t pixels) = 0;
  // Is called when row y is complete.
  virtual void done(std::uint32_t y) = 0;
};

// Decodes images on one thread, and keeps its memory from one to the next.
class JpegDecoder {
 public:
  JpegDecoder();
  ~JpegDecoder();
  JpegDecoder(const JpegDecoder &) = delete;
  JpegDecoder &operator=(const JpegDecoder &) = delete;

  // Returns whether all rows were delivered; if not, `message()` says why.
  bool decode(const std::uint8_t *data, std::size_t size, const JpegRequest &request,
              RowSink &sink);
  const char *message() const { return message_; }
  bool out_of_memory() const { return out_of_memory_; }

  // Gives up an image whose decoding was left by a longjmp out of `decode`.
  void abandon();

 private:
  struct Arena;  // memory of one image, handed out without calling malloc

  void forget_tables();
  void read_header(const JpegRequest &request);
  void read_part(RowSink &sink, const JpegPart &part);
  void read_rest(const JpegPart &part);
  [[noreturn]] void fail(const char *message);
  static JpegDecoder &of(j_common_ptr info);
  [[noreturn]] static void on_error(j_common_ptr info);
  static void on_message(j_common_ptr info, int level);
  static void on_progress(j_common_ptr info);

  jpeg_decompress_struct info_;
  jpeg_error_mgr errors_;
  jpeg_progress_mgr progress_;
  std::jmp_buf failed_;
  char message_[JMSG_LENGTH_MAX];
  bool out_of_memory_ = false;
  bool created_ = false;
  bool component_seen_[MAX_COMPONENTS];
  Arena *arena_ = nullptr;
};

extern const char *const kJpegVersion;

}  // namespace fastrot
