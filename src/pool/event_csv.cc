#include "pool/event_csv.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include "pool/registry.h"

namespace jax_bfc {
namespace {

constexpr size_t kBuffer = size_t{1} << 18;
// A line is shorter: readers refuse longer ones. A byte of a name takes three.
constexpr size_t kLongestLine = 4000;
constexpr size_t kLongestName = 400;

constexpr std::string_view kHeader =
    "Thread,Time,Action,Pointer,Size,Stream,event,id,chunk_bytes,device,kernel,"
    "label\n";

// With the commas around it.
std::string_view ActionOf(EventKind kind) {
  switch (kind) {
    case EventKind::kAllocate:
    case EventKind::kHeld:
      return ",allocate,0x";
    case EventKind::kFree:
      return ",free,0x";
    default:
      return ",allocate failure,0x";
  }
}

std::string Encoded(std::string_view name) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string text;
  for (const char c : name.substr(0, kLongestName)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte > ' ' && byte < 0x7F && c != ',' && c != '"' && c != '%') {
      text += c;
    } else {
      text += {'%', kDigits[byte >> 4], kDigits[byte & 0xF]};
    }
  }
  return text;
}

std::string DeviceOf(uint32_t pool) {
  return IsCudaPool(pool) ? "cuda:" + std::to_string(pool - kMaxHostPools)
                          : "cpu:" + std::to_string(pool);
}

}  // namespace

EventCsvWriter::EventCsvWriter(int file) : file_(file), buffer_(kBuffer) {
  std::memcpy(buffer_.data(), kHeader.data(), kHeader.size());
  used_ = kHeader.size();
}

const std::string& EventCsvWriter::Tail(const Event& event) {
  std::string& tail = tails_[uint64_t{event.pool} << 32 | event.kernel];
  if (tail.empty()) {
    tail = "," + DeviceOf(event.pool) + ",";
    if (event.kernel != kNoKernel) {
      const auto [kernel, label] = KernelAndLabel(event.kernel);
      tail += Encoded(kernel) + "," + Encoded(label);
    } else {
      tail += ',';
    }
    tail += '\n';
  }
  return tail;
}

void EventCsvWriter::Write(const Event& event) {
  if (kBuffer - used_ < kLongestLine) Flush();
  char* at = buffer_.data() + used_;
  char* const end = buffer_.data() + kBuffer;
  const auto number = [&](uint64_t n, int base = 10) {
    at = std::to_chars(at, end, n, base).ptr;
  };
  const auto text = [&](std::string_view t) {
    std::memcpy(at, t.data(), t.size());
    at += t.size();
  };
  number(event.slot);
  *at++ = ',';
  number(event.time_ns);
  text(ActionOf(event.kind));
  number(event.address, 16);
  *at++ = ',';
  number(event.requested_bytes);
  *at++ = ',';
  number(event.lane);
  *at++ = ',';
  text(EventName(event.kind));
  *at++ = ',';
  number(event.id);
  *at++ = ',';
  number(event.chunk_bytes);
  text(Tail(event));
  used_ = static_cast<size_t>(at - buffer_.data());
}

void EventCsvWriter::Flush() {
  const char* from = buffer_.data();
  while (used_ > 0 && error_ == 0) {
    const ssize_t written = write(file_, from, used_);
    if (written < 0) {
      if (errno != EINTR) error_ = errno;
      continue;
    }
    from += written;
    used_ -= static_cast<size_t>(written);
  }
  used_ = 0;
}

int EventCsvWriter::Finish() {
  Flush();
  return error_;
}

}  // namespace jax_bfc
