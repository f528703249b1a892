// A loop whose rounds are shared out over threads.

#pragma once

#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace fastrot {

// Runs body(0) ... body(count - 1) on up to `threads` threads, this one included. Threads live
// for one call: a lasting pool would not survive the fork of a loader's workers. The body must
// not throw.
template <typename Body>
void parallel_for(std::size_t count, std::size_t threads, const Body &body) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t k = next++; k < count; k = next++) body(k);
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    while (others.size() + 1 < threads) others.emplace_back(work);
  } catch (const std::system_error &) {
    // Out of threads: those that did start, and this one, do the work.
  }
  work();
  for (std::thread &thread : others) thread.join();
}

}  // namespace fastrot
