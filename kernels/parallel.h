// A loop whose iterations are distributed over threads.

#pragma once

#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace fastrot {

// Runs body(0) ... body(count - 1) on up to `threads` threads, including this one. Threads live
// for one call: a permanent pool would not survive when a loader forks its workers. The body must
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
    // No more threads are available: those that started, and this one, do the work.
  }
  work();
  for (std::thread &thread : others) thread.join();
}

}  // namespace fastrot
