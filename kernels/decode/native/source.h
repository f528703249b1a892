// Bytes of a file, mapped into memory or read by position, on any thread.

#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastrot {

class SourceFile {
 public:
  // Takes a duplicate of the descriptor. Throws std::system_error.
  SourceFile(int descriptor, bool map);
  ~SourceFile();
  SourceFile(const SourceFile &) = delete;
  SourceFile &operator=(const SourceFile &) = delete;

  // The bytes, in the mapping or in `buffer`; null: they cannot be read, `*message` says why.
  const std::uint8_t *read(std::uint64_t offset, std::uint64_t size,
                           std::vector<std::uint8_t> &buffer, const char **message) const;
  // Tell the system that these bytes will be wanted.
  void announce(std::uint64_t offset, std::uint64_t size) const;
  bool mapped() const { return mapping_ != nullptr; }

 private:
  int descriptor_;
  std::uint64_t size_ = 0;
  std::uint8_t *mapping_ = nullptr;
};

// A file that is cut while it is mapped makes the system send SIGBUS to whoever reads the lost
// part. Within `guarded`, on the thread that calls it, that is a result instead of the end of the
// process; a signal outside of it goes to the handler that was there before.
void catch_bus_errors();

// Whether `work(context)` ran to its end; no object with a destructor may live in it across reads.
bool guarded(void (*work)(void *), void *context);

}  // namespace fastrot
