// libFuzzer on what the fast path reads: any bytes are a row or none, and a row lies within its message.
#include <cstdlib>

#include "wire.h"

using namespace cellar;

static void check(std::string_view message, const Row& row, bool is_row) {
  if (!is_row) return;
  for (const std::string_view view : {row.data, row.shape, row.tensor, row.handles, row.id, row.model}) {
    if (view.empty()) continue;
    if (view.data() < message.data() || view.data() + view.size() > message.data() + message.size()) std::abort();
  }
  if (row.data.empty() || row.rest.size() > message.size() + 16) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view message(reinterpret_cast<const char*>(data), size);
  Row frame, step, predict;
  check(message, frame, read_frame(message, &frame));
  check(message, step, read_step(message, &step));
  check(message, predict, read_predict(message, &predict));
  return 0;
}
