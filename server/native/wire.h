// The wire format of cellar.v1, as far as the fast path reads it: messages that hold one chunk or one sequence.
//
// It takes a strict subset of what protobuf takes: each field at most once, packed, known, one row. Everything
// else is left to protobuf itself, so nothing is refused here.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace cellar {

// A number that was not given; -1 in a signed column.
constexpr uint64_t kAbsent = UINT64_MAX;

// One chunk of one session, or a whole sequence. Views point into the message that it was read from.
struct Row {
  uint64_t frame_id = 0;
  uint64_t handle = 0;  // of a frame
  uint64_t position = kAbsent;
  uint64_t length = kAbsent;
  uint64_t first_axis = kAbsent;  // of the shape
  uint64_t timeout_ms = 0;        // 0: none given
  std::string_view handles, id, model;   // of a frame, a step, a sequence
  std::string_view tensor, shape, data;  // the tensor, and what is in it
  std::string rest;  // the message without what the columns hold: rows whose rest is equal differ in nothing else
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  const char* at() const { return at_; }
  std::string_view left() const { return {at_, static_cast<size_t>(end_ - at_)}; }

  // A base 128 varint of at most 64 bits; false at a truncated or longer one.
  bool varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && at_ < end_; shift += 7) {
      const auto byte = static_cast<uint8_t>(*at_++);
      if (shift == 63 && byte > 1) return false;
      *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool bytes(std::string_view* value) {
    uint64_t size;
    if (!varint(&size) || size > left().size()) return false;
    *value = left().substr(0, size);
    at_ += size;
    return true;
  }

  // A number of at most `most`: by its key a varint, or the one entry of a packed column of them.
  bool number(uint64_t key, uint64_t most, uint64_t* value) {
    if ((key & 7) == 0) return varint(value) && *value <= most;
    std::string_view column;
    if (!bytes(&column)) return false;
    Reader inner(column);
    return inner.varint(value) && inner.left().empty() && *value <= most;
  }

 private:
  const char* at_;
  const char* end_;
};

inline void append_varint(std::string* out, uint64_t value) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

inline void append_part(std::string* out, char key, std::string_view bytes) {
  out->push_back(key);
  append_varint(out, bytes.size());
  out->append(bytes);
}

// A field of a message: its key (number and wire type) and the place of its bytes or of its number, which is at most
// `most`. What has no place is a number too, and goes to the rest.
struct Field {
  uint64_t key;
  std::string_view Row::*bytes = nullptr;
  uint64_t Row::*number = nullptr;
  uint64_t most = UINT64_MAX;
};
// The messages by their fields, which are numbered from 1 on without a gap.
constexpr Field kFrame[] = {
    {0x08, nullptr, &Row::frame_id},
    {0x12, &Row::handles},
    {0x1a, nullptr, &Row::position, INT64_MAX},
    {0x22, nullptr, &Row::length, UINT32_MAX},
    {0x2a, &Row::tensor},
    {0x32, nullptr, &Row::timeout_ms, UINT32_MAX},
    {0x3a},  // priorities
    {0x42},  // ends
};
constexpr Field kStepRequest[] = {
    {0x0a, &Row::id},
    {0x10, nullptr, &Row::position, INT64_MAX},
    {0x1a, &Row::tensor},
    {0x20, nullptr, &Row::length, UINT32_MAX},
    {0x28},  // ends
    {0x30, nullptr, &Row::timeout_ms, UINT32_MAX},
    {0x38},  // priority
};
constexpr Field kPredictRequest[] = {
    {0x0a, &Row::model},
    {0x10},  // version
    {0x1a, nullptr, &Row::length, UINT32_MAX},
    {0x22, &Row::tensor},
    {0x28},  // all_emissions
    {0x30, nullptr, &Row::timeout_ms, UINT32_MAX},
    {0x38},  // is_bulk
};
constexpr Field kTensor[] = {
    {0x08},  // dtype
    {0x12, &Row::shape},
    {0x1a, &Row::data},
};

template <size_t N>
bool read_fields(std::string_view message, const Field (&fields)[N], Row* row, std::string* rest) {
  Reader in(message);
  uint64_t key, kept, seen = 0;
  while (!in.left().empty()) {
    const char* begin = in.at();
    if (!in.varint(&key)) return false;
    const uint64_t number = key >> 3;
    if (number < 1 || number > N || fields[number - 1].key != key || (seen >> number & 1)) return false;
    seen |= uint64_t{1} << number;
    const Field& field = fields[number - 1];
    if (field.bytes) {
      if (!in.bytes(&(row->*field.bytes))) return false;
    } else if (field.number) {
      if (!in.number(key, field.most, &(row->*field.number))) return false;
    } else {
      if (!in.number(key, field.most, &kept)) return false;
      rest->append(begin, in.at());
    }
  }
  return true;
}

// What is in the tensor of a row, whose key that is; false where it holds no values.
inline bool read_tensor(char key, Row* row) {
  std::string kept;
  if (!read_fields(row->tensor, kTensor, row, &kept)) return false;
  if (!row->shape.empty()) {
    Reader axes(row->shape);
    if (!axes.varint(&row->first_axis) || row->first_axis > INT64_MAX) return false;
    if (!axes.left().empty()) append_part(&kept, 0x12, axes.left());
  }
  if (!kept.empty()) append_part(&row->rest, key, kept);
  return !row->data.empty();
}

// StreamRequest with a Frame of one row.
inline bool read_frame(std::string_view message, Row* row) {
  Reader outer(message);
  std::string_view frame;
  uint64_t key;
  if (!outer.varint(&key) || key != 0x12 || !outer.bytes(&frame) || !outer.left().empty()) return false;
  if (!read_fields(frame, kFrame, row, &row->rest) || !read_tensor(0x2a, row)) return false;
  if (row->handles.size() != sizeof row->handle) return false;
  std::memcpy(&row->handle, row->handles.data(), sizeof row->handle);
  return row->handle && row->position != kAbsent;
}

inline bool read_step(std::string_view message, Row* row) {
  return read_fields(message, kStepRequest, row, &row->rest) && read_tensor(0x1a, row) && !row->id.empty();
}

// PredictRequest of one sequence.
inline bool read_predict(std::string_view message, Row* row) {
  if (!read_fields(message, kPredictRequest, row, &row->rest) || !read_tensor(0x22, row)) return false;
  append_part(&row->rest, 0x0a, row->model);
  return true;
}

}  // namespace cellar
