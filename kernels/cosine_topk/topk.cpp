// The k rows of a bank most similar to each query, found through upper bounds of all similarities.
//
// Bounds are cheap (one float32 matrix product, see bound.py); exact similarities, float64 sums
// rounded to float32, are computed only of rows whose bound reaches the k-th best one so far.
//
// Shapes: m queries, b bank rows, D dimensions, k neighbours.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "../parallel.h"

namespace nb = nanobind;

namespace {

// Compiled for several processors; the one that runs is chosen when the extension is loaded. All
// give the same bits: products of two floats are exact in double, and the order of sums is fixed.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

constexpr std::size_t kLanes = 32;       // partial sums of a scalar product
constexpr std::size_t kGroup = 64;       // bounds that are compared before one is looked at
constexpr std::size_t kQueries = 8;      // queries that a thread takes at a time
constexpr std::size_t kLineFloats = 16;  // of a cache line

// Reads `next` ahead, as long as b: rows lie far apart, and memory is slower than the sum.
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

// Start of the first group from `start` on with a value above `floor`; the start of the last,
// incomplete one at the latest.
CLONES std::size_t next_group(const float *values, std::size_t start, std::size_t count,
                              float floor) {
  for (; start + kGroup <= count; start += kGroup) {
    int any = 0;
    for (std::size_t i = 0; i < kGroup; ++i) any |= values[start + i] > floor;
    if (any) break;
  }
  return start;
}

// Calls take(i) for each value above `floor`, which take may raise.
template <typename Take>
void each_above(const float *values, std::size_t count, const float &floor, const Take &take) {
  for (std::size_t start = 0; start < count; start += kGroup) {
    start = next_group(values, start, count, floor);
    const std::size_t stop = std::min(start + kGroup, count);
    for (std::size_t i = start; i < stop; ++i) {
      if (values[i] > floor) take(i);
    }
  }
}

struct Bound {
  float value;
  std::int32_t row;
};

bool higher(const Bound &a, const Bound &b) {
  return a.value > b.value || (a.value == b.value && a.row < b.row);
}

struct Neighbour {
  float similarity;
  std::int64_t index;
};

bool nearer(const Neighbour &a, const Neighbour &b) {
  return a.similarity > b.similarity || (a.similarity == b.similarity && a.index < b.index);
}

struct Bank {
  const float *values;
  std::size_t rows, dims;
  std::int64_t first_row;
};

// The search of one query at a time; what it allocates serves the next one too.
class Search {
 public:
  Search(const Bank &bank, std::size_t k) : bank_(bank), k_(k) {}

  // Merge the bank into k neighbours, index -1 where there is none. bounds[i] + slack is at least
  // the similarity of row i, and so is what that rounds to in float32.
  void run(const float *query, const float *bounds, double slack, float *similarities,
           std::int64_t *indices) {
    query_ = query;
    best_.clear();
    for (std::size_t i = 0; i < k_ && indices[i] >= 0; ++i) {
      best_.push_back({similarities[i], indices[i]});
    }
    std::make_heap(best_.begin(), best_.end(), nearer);  // the farthest one on top
    Bound seen{std::numeric_limits<float>::infinity(), -1};
    if (best_.size() < k_) {
      highest(bounds, std::min(k_, bank_.rows));
      for (const Bound &bound : list_) seen = higher(seen, bound) ? bound : seen;
      rescore_all();
    }
    if (best_.size() == k_) rest(bounds, slack, seen);
    std::sort_heap(best_.begin(), best_.end(), nearer);
    for (std::size_t i = 0; i < best_.size(); ++i) {
      similarities[i] = best_[i].similarity;
      indices[i] = best_[i].index;
    }
  }

  std::size_t rescored() const { return rescored_; }

 private:
  // The `count` rows of the highest bounds into list_.
  void highest(const float *bounds, std::size_t count) {
    const std::size_t most = 4 * count + kGroup;
    float floor = -std::numeric_limits<float>::infinity();
    list_.clear();
    const auto cut = [&] {
      if (list_.size() <= count) return;
      std::nth_element(list_.begin(), list_.begin() + (count - 1), list_.end(), higher);
      list_.resize(count);
      floor = list_.back().value;  // a later row of this same bound is not higher
    };
    each_above(bounds, bank_.rows, floor, [&](std::size_t i) {
      list_.push_back({bounds[i], static_cast<std::int32_t>(i)});
      if (list_.size() == most) cut();
    });
    cut();
  }

  // All other rows that may be nearer than the farthest one so far, the likeliest ones first.
  void rest(const float *bounds, double slack, const Bound &seen) {
    constexpr float down = -std::numeric_limits<float>::infinity();
    const auto lowest = [&] {
      const auto value = static_cast<float>(best_.front().similarity - slack);
      return std::nextafter(std::nextafter(value, down), down);  // rounded down, and below
    };
    const float floor = lowest();
    list_.clear();
    each_above(bounds, bank_.rows, floor, [&](std::size_t i) {
      const Bound bound{bounds[i], static_cast<std::int32_t>(i)};
      if (higher(seen, bound)) list_.push_back(bound);
    });
    std::sort(list_.begin(), list_.end(), higher);
    for (std::size_t i = 0; i < list_.size() && list_[i].value > lowest(); ++i) rescore(i);
  }

  void rescore_all() {
    for (std::size_t i = 0; i < list_.size(); ++i) rescore(i);
  }

  void rescore(std::size_t i) {
    const std::int32_t which = list_[i].row;
    const float *next = row(list_[std::min(i + 1, list_.size() - 1)].row);
    const auto similarity = static_cast<float>(dot(query_, row(which), next, bank_.dims));
    const Neighbour neighbour{similarity, bank_.first_row + which};
    ++rescored_;
    if (best_.size() == k_) {
      if (!nearer(neighbour, best_.front())) return;
      std::pop_heap(best_.begin(), best_.end(), nearer);
      best_.pop_back();
    }
    best_.push_back(neighbour);
    std::push_heap(best_.begin(), best_.end(), nearer);
  }

  const float *row(std::int32_t number) const {
    return bank_.values + static_cast<std::size_t>(number) * bank_.dims;
  }

  Bank bank_;
  std::size_t k_, rescored_ = 0;
  const float *query_ = nullptr;
  std::vector<Bound> list_;
  std::vector<Neighbour> best_;  // a heap
};

template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Slack = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::size_t cosine_topk(const Matrix<const float> &bounds, const Slack &slack,
                        const Matrix<const float> &queries, const Matrix<const float> &bank,
                        std::int64_t first_row, const Matrix<float> &similarities,
                        const Matrix<std::int64_t> &indices, std::size_t threads) {
  const std::size_t m = queries.shape(0), b = bank.shape(0), dims = queries.shape(1);
  const std::size_t k = similarities.shape(1);
  if (bounds.shape(0) != m || bounds.shape(1) != b || slack.shape(0) != m ||
      bank.shape(1) != dims || similarities.shape(0) != m || indices.shape(0) != m ||
      indices.shape(1) != k || k == 0 || b > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("cosine_topk: shapes of the arguments do not fit together");
  }
  const std::size_t pieces = (m + kQueries - 1) / kQueries;
  threads = std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(pieces, 1));
  std::atomic<std::size_t> rescored{0};

  const nb::gil_scoped_release unlocked;
  fastrot::parallel_for(pieces, threads, [&](std::size_t piece) {
    Search search({bank.data(), b, dims, first_row}, k);
    const std::size_t stop = std::min(m, (piece + 1) * kQueries);
    for (std::size_t i = piece * kQueries; i < stop; ++i) {
      search.run(queries.data() + i * dims, bounds.data() + i * b, slack.data()[i],
                 similarities.data() + i * k, indices.data() + i * k);
    }
    rescored += search.rescored();
  });
  return rescored;
}

}  // namespace

void bind_cosine_topk(nb::module_ &module) {
  using namespace nb::literals;
  module.def("cosine_topk", &cosine_topk, "bounds"_a.noconvert(), "slack"_a.noconvert(),
             "queries"_a.noconvert(), "bank"_a.noconvert(), "first_row"_a,
             "similarities"_a.noconvert(), "indices"_a.noconvert(), "threads"_a);
}
