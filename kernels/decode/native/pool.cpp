#include "pool.h"

#include <algorithm>
#include <csignal>
#include <new>
#include <stdexcept>

#include <pthread.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fastrot {

namespace {

constexpr double kPatienceSeconds = 10.0;
constexpr double kLongestWaitSeconds = 1e6;  // small enough to add to the clock

// What one thread keeps from row to row.
struct Worker {
  Cropper cropper;
  std::vector<std::uint8_t> buffer, field;
};

// One row; `message` stays null on success.
struct Row {
  Worker &worker;
  const Batch &batch;
  std::size_t number;
  const char *message = nullptr;
  bool out_of_memory = false;
};

bool has_its_checksum(Row &row, const std::uint8_t *image) {
  const Checks &checks = row.batch.checks;
  const Place &place = row.batch.places[row.number];
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, checks.records + row.number * checks.record_bytes,
                     checks.record_bytes);
  for (std::size_t k = 0; k < checks.fields; ++k) {
    const std::uint64_t offset = checks.offsets[row.number * checks.fields + k];
    const std::uint64_t size = checks.sizes[row.number * checks.fields + k];
    if (size == 0) continue;
    const std::uint8_t *bytes = image;
    if (offset != place.offset) {
      bytes = place.file->read(offset, size, row.worker.field, &row.message);
      if (!bytes) return false;
    }
    XXH3_64bits_update(&state, bytes, size);
  }
  if (XXH3_64bits_digest(&state) == checks.wanted[row.number]) return true;
  row.message = "its bytes do not have the manifest's checksum";
  return false;
}

void crop_row(void *context) {
  Row &row = *static_cast<Row *>(context);
  const Batch &batch = row.batch;
  const Place &place = batch.places[row.number];
  const std::uint8_t *bytes = place.memory;
  try {
    if (place.file) {
      bytes = place.file->read(place.offset, place.size, row.worker.buffer, &row.message);
      if (!bytes) return;
      if (batch.checks.wanted && !has_its_checksum(row, bytes)) return;
    }
    Cropper &cropper = row.worker.cropper;
    const CropRequest &request = batch.requests[row.number];
    const bool sound =
        batch.out ? cropper.crop(bytes, place.size, request, batch.out + row.number * batch.row_bytes)
                  : cropper.only_decode(bytes, place.size, request);
    if (!sound) row.message = cropper.message();
  } catch (const std::bad_alloc &) {
    row.message = "too little memory to decode it";
    row.out_of_memory = true;
  }
}

}  // namespace

struct Pool::Shared {
  std::mutex mutex;
  std::condition_variable work, progress;
  std::deque<std::shared_ptr<Batch>> queue;
  std::size_t at_work = 0;  // rows
  bool stop = false;
};

Pool::Pool(int threads) : shared_(std::make_shared<Shared>()), process_(getpid()) {
  // Signals are for the interpreter's main thread, except faults, which the faulting thread gets.
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([shared = shared_] { run(shared); });
#ifdef __linux__
      pthread_setname_np(threads_.back().native_handle(), "fastrot-decode");
#endif
    }
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    {
      const std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->stop = true;
    }
    shared_->work.notify_all();
    for (std::thread &thread : threads_) thread.join();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Pool::~Pool() {
  if (process_ != getpid()) {  // a forked process has no threads to wait for, only their handles
    for (std::thread &thread : threads_) thread.detach();
    return;
  }
  const bool finished = discard(kPatienceSeconds);
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->stop = true;
  }
  shared_->work.notify_all();
  for (std::thread &thread : threads_) {
    if (finished) {
      thread.join();
    } else {
      thread.detach();
    }
  }
}

void Pool::check_process() const {
  if (process_ != getpid()) throw std::runtime_error("the threads did not survive a fork");
}

void Pool::submit(const std::shared_ptr<Batch> &batch) {
  check_process();
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    if (!batch->places.empty()) shared_->queue.push_back(batch);
  }
  shared_->work.notify_all();
}

bool Pool::wait(const Batch &batch, double seconds) {
  check_process();
  seconds = std::clamp(seconds, 0.0, kLongestWaitSeconds);
  std::unique_lock<std::mutex> lock(shared_->mutex);
  return shared_->progress.wait_for(lock, std::chrono::duration<double>(seconds),
                                    [&] { return batch.finished == batch.places.size(); });
}

bool Pool::discard(double seconds) {
  if (process_ != getpid()) return true;
  std::unique_lock<std::mutex> lock(shared_->mutex);
  shared_->queue.clear();
  return shared_->progress.wait_for(lock, std::chrono::duration<double>(seconds),
                                    [&] { return shared_->at_work == 0; });
}

void Pool::run(const std::shared_ptr<Shared> &shared) {
  Worker worker;
  std::unique_lock<std::mutex> lock(shared->mutex);
  for (;;) {
    shared->work.wait(lock, [&] { return shared->stop || !shared->queue.empty(); });
    if (shared->stop) return;
    const std::shared_ptr<Batch> batch = shared->queue.front();
    Row row{worker, *batch, batch->next++};
    if (batch->next == batch->places.size()) shared->queue.pop_front();
    ++shared->at_work;
    lock.unlock();
    const Place &place = batch->places[row.number];
    if (place.file && place.file->mapped()) {
      if (!guarded(crop_row, &row)) {
        worker.cropper.abandon();
        row.message = "the file was cut while in use";
      }
    } else {
      crop_row(&row);
    }
    lock.lock();
    if (row.message) batch->failures.emplace_back(row.number, row.message);
    ++batch->finished;
    --shared->at_work;
    if (batch->finished == batch->places.size() || shared->at_work == 0) {
      shared->progress.notify_all();
    }
  }
}

}  // namespace fastrot
