// The few messages of cellar.v1 that the load generator speaks, written and read by hand: cheaper than parsed ones.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace wire {

// Field numbers as in proto/cellar_proto/v1.
inline void varint(std::string& out, uint64_t value) {
  while (value >= 128) {
    out.push_back(static_cast<char>(value | 128));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

inline void number(std::string& out, int field, uint64_t value) {
  varint(out, field << 3);
  varint(out, value);
}

inline void bytes(std::string& out, int field, const std::string& value) {
  varint(out, field << 3 | 2);
  varint(out, value.size());
  out += value;
}

// A field whose last part, `size` bytes, follows what is written here.
inline void head(std::string& out, int field, const std::string& first, size_t size) {
  varint(out, field << 3 | 2);
  varint(out, first.size() + size);
  out += first;
}

// A message: what was written, and values behind it (without a copy of their own on the way).
inline grpc::ByteBuffer buffer(const std::string& written, const char* values = nullptr, size_t size = 0) {
  grpc::Slice slice(written.size() + size);
  auto* at = const_cast<uint8_t*>(slice.begin());
  std::memcpy(at, written.data(), written.size());
  if (size) std::memcpy(at + written.size(), values, size);
  return grpc::ByteBuffer(&slice, 1);
}

// Tensor { data } as the last field of a message; the data follow.
inline void tensor_head(std::string& out, int field, size_t size) {
  std::string data;
  varint(data, 3 << 3 | 2);
  varint(data, size);
  head(out, field, data, size);
}

inline grpc::ByteBuffer open_sessions(const std::string& model, uint64_t count, uint64_t frame_id) {
  std::string body, out;
  number(body, 1, frame_id);
  bytes(body, 2, model);
  number(body, 5, count);
  bytes(out, 1, body);
  return buffer(out);
}

inline std::string packed(const std::vector<uint64_t>& handles) {
  return std::string(reinterpret_cast<const char*>(handles.data()), 8 * handles.size());
}

inline grpc::ByteBuffer close_sessions(const std::vector<uint64_t>& handles, uint64_t frame_id) {
  std::string body, out;
  number(body, 1, frame_id);
  bytes(body, 2, packed(handles));
  bytes(out, 3, body);
  return buffer(out);
}

// `steps` steps of each session, all at the same position.
inline grpc::ByteBuffer frame(const std::vector<uint64_t>& handles, uint64_t position, uint64_t steps,
                              uint64_t frame_id, const std::string& values) {
  std::string body, positions, out;
  number(body, 1, frame_id);
  bytes(body, 2, packed(handles));
  for (size_t i = 0; i < handles.size(); ++i) varint(positions, position);
  bytes(body, 3, positions);
  if (steps != 1) {
    std::string length;
    varint(length, steps);
    bytes(body, 4, length);
  }
  tensor_head(body, 5, values.size());
  head(out, 2, body, values.size());
  return buffer(out, values.data(), values.size());
}

inline grpc::ByteBuffer step(const std::string& id, const std::string& values) {
  std::string out;
  bytes(out, 1, id);
  tensor_head(out, 3, values.size());
  return buffer(out, values.data(), values.size());
}

inline grpc::ByteBuffer predict(const std::string& model, uint64_t timeout_ms, const char* values, size_t size) {
  std::string out;
  bytes(out, 1, model);
  if (timeout_ms) number(out, 6, timeout_ms);
  tensor_head(out, 4, size);
  return buffer(out, values, size);
}

inline grpc::ByteBuffer generate(const std::string& model, const std::string& text, uint64_t max_steps,
                                 uint64_t seed) {
  std::string out, sampling;
  bytes(out, 1, model);
  bytes(out, 3, text);
  std::string temperature("\x0d\x00\x00\x80\x3f", 5);  // 1.0
  sampling += temperature;
  number(sampling, 4, seed);
  if (max_steps) number(sampling, 5, max_steps);
  bytes(out, 5, sampling);
  return buffer(out);
}

inline grpc::ByteBuffer open_session(const std::string& model, const std::string& id) {
  std::string out;
  bytes(out, 1, model);
  bytes(out, 3, id);
  return buffer(out);
}

// One field of a message; `data` and `size` where it is length-delimited, else `value`.
struct Field {
  int number = 0, type = 0;
  uint64_t value = 0;
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// Walks over the fields of a message, and over the numbers of a packed one.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  explicit Reader(const Field& field) : Reader(field.data, field.size) {}

  bool is_done() const { return at_ >= end_; }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; at_ < end_ && shift < 64; shift += 7) {
      uint8_t byte = *at_++;
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) break;
    }
    return value;
  }

  // False at the end, or where the bytes are no message.
  bool next(Field& field) {
    if (is_done()) return false;
    uint64_t tag = varint();
    field = Field{static_cast<int>(tag >> 3), static_cast<int>(tag & 7), 0, nullptr, 0};
    size_t left = end_ - at_;
    switch (field.type) {
      case 0:
        field.value = varint();
        return true;
      case 1:
      case 5: {
        size_t size = field.type == 1 ? 8 : 4;
        if (left < size) return false;
        std::memcpy(&field.value, at_, size);
        at_ += size;
        return true;
      }
      case 2:
        field.size = varint();
        field.data = at_;
        if (field.size > static_cast<size_t>(end_ - at_)) return false;
        at_ += field.size;
        return true;
      default:
        return false;
    }
  }

 private:
  const uint8_t *at_, *end_;
};

// The bytes of a message behind one another.
inline grpc::Slice flat(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.TrySingleSlice(&slice).ok()) buffer.DumpToSingleSlice(&slice);
  return slice;
}

// Number of the Reason in an Error.
inline int reason(const uint8_t* data, size_t size) {
  Reader reader(data, size);
  Field field;
  while (reader.next(field))
    if (field.number == 1) return static_cast<int>(field.value);
  return 0;
}

// Number of the Reason in a RowError.
inline int row_reason(const Field& row_error) {
  Reader reader(row_error);
  Field field;
  while (reader.next(field))
    if (field.number == 2 && field.type == 2) return reason(field.data, field.size);
  return 0;
}

}  // namespace wire
