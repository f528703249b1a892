// views = look_up(turn(flip(image))): bytes become words of a table, without arithmetic.
//
// Shapes: N images, V views of each, S side, C = 3 or 4 channels.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "../parallel.h"

namespace nb = nanobind;

namespace {

// A tile's source and destination stay in the L1 cache while a turn walks across rows.
constexpr std::ptrdiff_t kTile = 32;

// Starting a thread costs about as much as writing this many pixels.
constexpr std::size_t kPixelsPerThread = 32768;

// The pixel at (row i, column j) of a view comes from byte start + i * down + j * right.
struct Walk {
  std::ptrdiff_t start, down, right;
};

Walk walk_of(unsigned turn, bool flip, std::ptrdiff_t side) {
  const std::ptrdiff_t pixel = 3, row = 3 * side, last = side - 1;
  Walk walk{};
  switch (turn & 3u) {  // numpy.rot90 counter-clockwise; (r, c) is read at ...
    case 0: walk = {0, row, pixel}; break;                                // (i, j)
    case 1: walk = {last * pixel, -pixel, row}; break;                    // (j, last - i)
    case 2: walk = {last * (row + pixel), -row, -pixel}; break;           // (last - i, last - j)
    default: walk = {last * row, pixel, -row}; break;                     // (last - j, i)
  }
  if (!flip) return walk;
  // The flip comes first, so what the turn reads at column c is at column last - c.
  const bool down_is_column = walk.down == pixel || walk.down == -pixel;
  std::ptrdiff_t &step = down_is_column ? walk.down : walk.right;
  walk.start += step * last;
  step = -step;
  return walk;
}

template <typename Word, int Channels>
void write_view(const std::uint8_t *image, const Walk &walk, const Word *table,
                std::ptrdiff_t side, Word *view) {
  const bool along_rows = walk.right == 3 || walk.right == -3;
  const std::ptrdiff_t tile = along_rows ? side : kTile;
  for (std::ptrdiff_t i0 = 0; i0 < side; i0 += tile) {
    const std::ptrdiff_t i1 = std::min(i0 + tile, side);
    for (std::ptrdiff_t j0 = 0; j0 < side; j0 += tile) {
      const std::ptrdiff_t j1 = std::min(j0 + tile, side);
      for (std::ptrdiff_t i = i0; i < i1; ++i) {
        const std::uint8_t *source = image + walk.start + i * walk.down + j0 * walk.right;
        Word *out = view + (i * side + j0) * Channels;
        for (std::ptrdiff_t j = j0; j < j1; ++j) {
          out[0] = table[source[0] * 3];
          out[1] = table[source[1] * 3 + 1];
          out[2] = table[source[2] * 3 + 2];
          if constexpr (Channels == 4) out[3] = Word{0};
          source += walk.right;
          out += Channels;
        }
      }
    }
  }
}

using Images = nb::ndarray<const std::uint8_t, nb::shape<-1, -1, -1, 3>, nb::c_contig,
                           nb::device::cpu>;
using Turns = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Flips = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename Word>
using Table = nb::ndarray<const Word, nb::shape<256, 3>, nb::c_contig, nb::device::cpu>;
template <typename Word>
using Views = nb::ndarray<Word, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

template <typename Word>
void rotate_views(const Images &images, const Turns &turns, const Flips &flips,
                  const Table<Word> &table, const Views<Word> &views, std::size_t threads) {
  const std::size_t n = images.shape(0), side = images.shape(1), v = turns.shape(1);
  const std::size_t channels = views.shape(3);
  if (images.shape(2) != side || turns.shape(0) != n || flips.shape(0) != n ||
      views.shape(0) != n * v || views.shape(1) != side || views.shape(2) != side ||
      (channels != 3 && channels != 4)) {
    throw std::invalid_argument("rotate_views: shapes of the arguments do not fit together");
  }
  const std::size_t view_pixels = side * side;
  const std::size_t useful = 1 + n * v * view_pixels / kPixelsPerThread;
  threads = std::clamp<std::size_t>(threads, 1, std::min(useful, std::max<std::size_t>(n, 1)));

  const nb::gil_scoped_release unlocked;
  fastrot::parallel_for(n, threads, [&](std::size_t k) {
    const std::uint8_t *image = images.data() + k * view_pixels * 3;
    for (std::size_t view = k * v; view < (k + 1) * v; ++view) {
      const Walk walk = walk_of(turns.data()[view], flips.data()[k] != 0,
                                static_cast<std::ptrdiff_t>(side));
      Word *out = views.data() + view * view_pixels * channels;
      if (channels == 3) {
        write_view<Word, 3>(image, walk, table.data(), static_cast<std::ptrdiff_t>(side), out);
      } else {
        write_view<Word, 4>(image, walk, table.data(), static_cast<std::ptrdiff_t>(side), out);
      }
    }
  });
}

template <typename Word>
void bind(nb::module_ &module) {
  using namespace nb::literals;
  module.def("rotate_views", &rotate_views<Word>, "images"_a.noconvert(), "turns"_a.noconvert(),
             "flips"_a.noconvert(), "table"_a.noconvert(), "views"_a.noconvert(), "threads"_a);
}

}  // namespace

void bind_rotate(nb::module_ &module) {
  bind<std::int16_t>(module);  // float16 and bfloat16, as bits
  bind<std::int32_t>(module);  // float32, as bits
}
