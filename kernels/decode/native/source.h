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

  // Returns the bytes, in the mapping or in `buffer`; null: cannot be read, `*message` says why.
  const std::uint8_t *read(std::uint64_t offset, std::uint64_t size,
                           std::vector<std::uint8_t> &buffer, const char **message) const;
  // Tells the system that these bytes will be read soon.
  void announce(std::uint64_t offset, std::uint64_t size) const;
  bool mapped() const { return mapping_ != nullptr; }

 private:
  int descriptor_;
  std::uint64_t size_ = 0;
  std::uint8_t *mapping_ = nullptr;
};

// If a file is truncated while mapped, whoever reads the lost part gets SIGBUS. On a thread within
// `guarded` that becomes a return value instead of the end of the process; elsewhere the signal
// goes to the previous handler.
void catch_bus_errors();

// Returns whether `work(context)` completed; no object with a destructor may live across its reads.
bool guarded(void (*work)(void *), void *context);

}  // namespace fastrot
