#include "source.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <system_error>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fastrot {

namespace {

thread_local sigjmp_buf *guard = nullptr;
struct sigaction previous;

void on_bus_error(int, siginfo_t *, void *) {
  if (guard) siglongjmp(*guard, 1);
  // Not ours: the previous handler gets the same fault again. If that leads back here (as with
  // faulthandler), no other handler is left.
  static volatile std::sig_atomic_t passed_on = 0;
  if (passed_on++) {
    ::signal(SIGBUS, SIG_DFL);
  } else {
    sigaction(SIGBUS, &previous, nullptr);
  }
}

}  // namespace

void catch_bus_errors() {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  struct sigaction now;
  if (sigaction(SIGBUS, nullptr, &now) != 0) return;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return;
  previous = now;
  struct sigaction ours = {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGBUS, &ours, nullptr);
}

bool guarded(void (*work)(void *), void *context) {
  sigjmp_buf here;
  if (sigsetjmp(here, 1)) {
    guard = nullptr;
    return false;
  }
  guard = &here;
  try {
    work(context);
  } catch (...) {
    guard = nullptr;
    throw;
  }
  guard = nullptr;
  return true;
}

SourceFile::SourceFile(int descriptor, bool map) : descriptor_(-1) {
  descriptor_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), "duplicate a file");
  struct stat status;
  if (fstat(descriptor_, &status) != 0) {
    const int error = errno;
    close(descriptor_);
    throw std::system_error(error, std::generic_category(), "look at a file");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  if (!map || size_ == 0) return;
  void *mapping = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (mapping == MAP_FAILED) return;  // the file is then read by position
  madvise(mapping, size_, MADV_RANDOM);  // what will be read is announced
  mapping_ = static_cast<std::uint8_t *>(mapping);
}

SourceFile::~SourceFile() {
  if (mapping_) munmap(mapping_, size_);
  if (descriptor_ >= 0) close(descriptor_);
}

const std::uint8_t *SourceFile::read(std::uint64_t offset, std::uint64_t size,
                                     std::vector<std::uint8_t> &buffer,
                                     const char **message) const {
  if (offset > size_ || size > size_ - offset) {
    *message = "its bytes are beyond the end of the file";
    return nullptr;
  }
  if (mapping_) return mapping_ + offset;
  if (buffer.size() < size) buffer.resize(size);
  for (std::uint64_t done = 0; done < size;) {
    const ssize_t count = pread(descriptor_, buffer.data() + done, size - done,
                                static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      *message = count < 0 ? "the system cannot read it" : "the file was cut while in use";
      return nullptr;
    }
    done += static_cast<std::uint64_t>(count);
  }
  return buffer.data();
}

void SourceFile::announce(std::uint64_t offset, std::uint64_t size) const {
  posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size),
                POSIX_FADV_WILLNEED);
}

}  // namespace fastrot
