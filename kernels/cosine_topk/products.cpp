// Scalar products of chosen pairs of rows: float64 sums, rounded once to float32.
//
// Shapes: m queries, b bank rows, D dimensions, c chosen rows of the bank for each query.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "../parallel.h"

namespace nb = nanobind;

namespace {

// Compiled for several instruction sets; loading the extension selects one. All give the same bits:
// products of two floats are exact in double, and the order of the sums is fixed.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

constexpr std::size_t kLanes = 32;           // partial sums per scalar product
constexpr std::size_t kLineFloats = 16;      // floats per cache line
constexpr std::size_t kTileBytes = 1 << 23;  // bytes of bank rows that stay in the cache
constexpr std::size_t kQueries = 64;         // queries that a thread takes at a time

// Prefetches `next`, also `dims` floats: rows are far apart, and memory is slower than the sum.
CLONES double dot(const float *a, const float *b, const float *next, std::size_t dims) {
  double sums[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= dims; i += kLanes) {
    for (std::size_t at = 0; at < kLanes; at += kLineFloats) __builtin_prefetch(next + i + at);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    }
  }
  for (std::size_t lane = 0; i + lane < dims; ++lane) {
    sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void scalar_products(const Matrix<const float> &queries, const Matrix<const float> &bank,
                     const Matrix<const std::int64_t> &rows, const Matrix<float> &products,
                     std::size_t threads) {
  const std::size_t m = queries.shape(0), b = bank.shape(0), dims = queries.shape(1);
  const std::size_t chosen = rows.shape(1);
  if (bank.shape(1) != dims || dims == 0 || rows.shape(0) != m || products.shape(0) != m ||
      products.shape(1) != chosen) {
    throw std::invalid_argument("scalar_products: shapes of the arguments do not fit together");
  }
  for (std::size_t i = 0; i < m * chosen; ++i) {
    if (static_cast<std::uint64_t>(rows.data()[i]) >= b) {
      throw std::invalid_argument("scalar_products: a row is not in the bank");
    }
  }
  const std::size_t pieces = (m + kQueries - 1) / kQueries;
  const std::size_t tile = std::max<std::size_t>(1, kTileBytes / (sizeof(float) * dims));
  std::vector<std::size_t> next(m, 0);  // index of each query's first row that is not done

  const nb::gil_scoped_release unlocked;
  // All queries are multiplied with one tile of the bank after the other, so the bank is read from
  // memory once. Rows that are not in the bank's order are done with a later tile.
  for (std::size_t stop = std::min(tile, b); m * chosen > 0; stop = std::min(stop + tile, b)) {
    fastrot::parallel_for(pieces, std::clamp<std::size_t>(threads, 1, pieces), [&](std::size_t at) {
      for (std::size_t i = at * kQueries; i < std::min(m, (at + 1) * kQueries); ++i) {
        const std::int64_t *row = rows.data() + i * chosen;
        for (std::size_t &j = next[i]; j < chosen && static_cast<std::size_t>(row[j]) < stop; ++j) {
          const float *ahead = bank.data() + row[std::min(j + 1, chosen - 1)] * dims;
          products.data()[i * chosen + j] = static_cast<float>(
              dot(queries.data() + i * dims, bank.data() + row[j] * dims, ahead, dims));
        }
      }
    });
    if (stop == b) break;
  }
}

}  // namespace

void bind_cosine_topk(nb::module_ &module) {
  using namespace nb::literals;
  module.def("scalar_products", &scalar_products, "queries"_a.noconvert(), "bank"_a.noconvert(),
             "rows"_a.noconvert(), "products"_a.noconvert(), "threads"_a);
}
