// Threads that crop the rows of batches, in the order of submission.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "crop.h"
#include "source.h"

namespace fastrot {

// Location of a row's bytes: in a file or in memory.
struct Place {
  const SourceFile *file = nullptr;
  std::uint64_t offset = 0, size = 0;
  const std::uint8_t *memory = nullptr;
};

// Checksums of a batch: each is xxh3_64 over a row's record and then all its spans in the file.
struct Checks {
  const std::uint64_t *wanted = nullptr;  // null: do not compare
  const std::uint8_t *records = nullptr;
  std::size_t record_bytes = 0;
  const std::uint64_t *offsets = nullptr, *sizes = nullptr;  // (rows, fields)
  std::size_t fields = 0;
};

struct Batch {
  std::vector<Place> places;
  std::vector<CropRequest> requests;
  Checks checks;
  std::vector<std::shared_ptr<SourceFile>> files;  // kept open
  std::uint8_t *out = nullptr;                     // (rows, size, size, 3); null: only decode
  std::size_t row_bytes = 0;

  std::size_t next = 0;      // under the pool's mutex
  std::size_t finished = 0;  // under the pool's mutex
  std::vector<std::pair<std::size_t, std::string>> failures;  // under the pool's mutex
};

class Pool {
 public:
  explicit Pool(int threads);
  // Waits for the rows in progress; a thread that hangs in a dead file system is left behind.
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  // `submit` and `wait` throw std::runtime_error in a forked process, which has no threads.
  void submit(const std::shared_ptr<Batch> &batch);
  // Waits at most this many seconds; returns whether all rows are finished.
  bool wait(const Batch &batch, double seconds);
  // Discards the rows that no thread has begun; returns whether the others finish in time.
  bool discard(double seconds);

 private:
  void check_process() const;

  struct Shared;  // outlives the pool if a thread is left behind
  static void run(const std::shared_ptr<Shared> &shared);

  std::shared_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
  int process_;
};

}  // namespace fastrot
