// Walks over the markers of a whole JPEG file, for files whose bytes are kept unchanged.
//
// kernels/decode/markers.py is the definition and raises the errors; here the result is empty for
// any file that is not ordinary. memchr searches entropy-coded data, so this is as fast as memory.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr std::uint8_t kSoi = 0xd8, kEoi = 0xd9, kSos = 0xda, kApp1 = 0xe1, kTem = 0x01;

bool is_restart(std::uint8_t marker) { return marker >= 0xd0 && marker <= 0xd7; }

bool is_frame(std::uint8_t marker) {
  return marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
}

struct Walk {
  std::size_t frame = 0;  // offset of the frame header's payload; 0: none yet
  std::uint8_t frame_marker = 0;
  std::size_t exif_start = 0, exif_stop = 0;  // of the first EXIF block before the scans
  std::size_t scans = 0;
  std::size_t end = 0;  // offset after the end-of-image marker
};

// Returns the offset of the 0xff of the next marker in or after a scan; `size`: there is none.
std::size_t next_marker(const std::uint8_t *data, std::size_t size, std::size_t at) {
  while (at + 1 < size) {
    const void *found = std::memchr(data + at, 0xff, size - 1 - at);
    if (!found) return size;
    at = static_cast<std::size_t>(static_cast<const std::uint8_t *>(found) - data);
    const std::uint8_t next = data[at + 1];
    if (next == 0xff) {
      ++at;  // padding
    } else if (next == 0x00 || is_restart(next)) {
      at += 2;
    } else {
      return at;
    }
  }
  return size;
}

// Returns whether the file is complete and ordinary.
bool walk(const std::uint8_t *data, std::size_t size, Walk *result) {
  if (size < 4 || data[0] != 0xff || data[1] != kSoi) return false;
  std::size_t at = 2;
  while (at < size) {
    if (data[at] != 0xff) return false;
    while (at < size && data[at] == 0xff) ++at;
    if (at == size) return false;
    const std::uint8_t marker = data[at++];
    if (marker == kEoi) {
      result->end = at;
      return result->frame != 0 && result->scans > 0;
    }
    if (is_restart(marker) || marker == kTem) continue;
    if (marker == 0x00 || marker == kSoi || size - at < 2) return false;
    const std::size_t length = std::size_t{data[at]} << 8 | data[at + 1];
    if (length < 2 || length > size - at) return false;
    const std::size_t start = at + 2, stop = at + length;
    if (is_frame(marker)) {
      if (result->frame || stop - start < 6) return false;
      if (stop - start != 6 + 3 * std::size_t{data[start + 5]}) return false;
      result->frame = start;
      result->frame_marker = marker;
    } else if (marker == kApp1 && !result->exif_stop && !result->scans && stop - start >= 5 &&
               std::memcmp(data + start, "Exif\0", 5) == 0) {
      result->exif_start = stop - start > 6 ? start + 6 : stop;
      result->exif_stop = stop;
    } else if (marker == kSos) {
      ++result->scans;
    }
    at = stop;
    if (marker == kSos) at = next_marker(data, size, at);
  }
  return false;
}

// Returns (frame marker, offset of its payload, EXIF start, EXIF stop, scans, end).
nb::tuple answer(const Walk &found) {
  return nb::make_tuple(found.frame_marker, found.frame, found.exif_start, found.exif_stop,
                        found.scans, found.end);
}

nb::object walk_jpeg(const Bytes &data) {
  Walk found;
  if (!walk(data.data(), data.size(), &found)) return nb::none();
  return answer(found);
}

// Reads a file into `buffer`; returns whether it has exactly `size` bytes.
bool read_whole(const char *path, char *buffer, std::size_t size) {
  const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  std::size_t done = 0;
  char beyond;
  while (true) {
    const bool full = done == size;
    const ssize_t count = read(descriptor, full ? &beyond : buffer + done, full ? 1 : size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0 || full) {
      close(descriptor);
      return full && count == 0;
    }
    done += static_cast<std::size_t>(count);
  }
}

// Returns the bytes of a file of `size` bytes and the result of `walk_jpeg`; None: another size, or
// not ordinary. Runs without the GIL, which would otherwise change hands at each of these calls.
nb::object read_jpeg(const nb::bytes &path, std::size_t size) {
  nb::object data = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!data.is_valid()) throw nb::python_error();
  char *const buffer = PyBytes_AS_STRING(data.ptr());
  Walk found;
  bool ordinary;
  {
    const nb::gil_scoped_release unlocked;
    ordinary = read_whole(path.c_str(), buffer, size) &&
               walk(reinterpret_cast<const std::uint8_t *>(buffer), size, &found);
  }
  if (!ordinary) return nb::none();
  return nb::make_tuple(data, answer(found));
}

// Tells the system that these files will be read soon; skips those that cannot be opened.
void announce_files(const nb::list &paths) {
  std::vector<std::string> names;
  names.reserve(nb::len(paths));
  for (const nb::handle path : paths) names.emplace_back(nb::cast<nb::bytes>(path).c_str());
  const nb::gil_scoped_release unlocked;
  for (const std::string &name : names) {
    const int descriptor = open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) continue;
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_WILLNEED);
    close(descriptor);
  }
}

}  // namespace

void bind_markers(nb::module_ &module) {
  using namespace nb::literals;
  module.def("walk_jpeg", &walk_jpeg, "data"_a.noconvert());
  module.def("announce_files", &announce_files, "paths"_a);
  module.def("read_jpeg", &read_jpeg, "path"_a, "size"_a);
}
