// Recordings as text, one line an event.
#ifndef JAX_BFC_POOL_EVENT_CSV_H_
#define JAX_BFC_POOL_EVENT_CSV_H_

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "pool/events.h"

namespace jax_bfc {

// Writes CSV with the columns of RMM's log, so that what reads those reads
// these, and more behind:
//
//   Thread,Time,Action,Pointer,Size,Stream,
//       event,id,chunk_bytes,device,kernel,label
//
// Action is "allocate", "free", or "allocate failure", which replays pass over;
// `event` says what it was. Time is in ns since the recording began. Names are
// percent-encoded where they are not printable ASCII, or hold "," or '"'.
class EventCsvWriter {
 public:
  // Writes to a descriptor, which stays open.
  explicit EventCsvWriter(int file);
  EventCsvWriter(const EventCsvWriter&) = delete;
  EventCsvWriter& operator=(const EventCsvWriter&) = delete;

  void Write(const Event& event);
  // 0, or errno of the first write that failed.
  int Finish();

 private:
  void Flush();
  const std::string& Tail(const Event& event);  // device, kernel, label

  const int file_;
  int error_ = 0;
  size_t used_ = 0;
  std::vector<char> buffer_;
  std::unordered_map<uint64_t, std::string> tails_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_EVENT_CSV_H_
