// The wire format of cellar.v1, as far as the fast path reads and writes it: messages that hold one chunk, and answers.
//
// Reading takes a strict subset of what protobuf takes: each field at most once, packed, known, one row. Everything
// else is left to protobuf itself, so nothing is refused here.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace cellar {

// One chunk of one session. Views point into the message that it was read from.
struct Row {
  uint64_t frame_id = 0;
  uint64_t handle = 0;       // of a frame
  std::string_view id;       // of a step
  int64_t position = -1;     // -1: none given
  int64_t length = -1;       // -1: none given
  int64_t first_axis = -1;   // of the shape; -1: none given
  uint64_t timeout_ms = 0;   // 0: none given
  std::string_view data;
  std::string rest;  // the message without all of the above: rows whose rest is equal differ in nothing else
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  bool done() const { return at_ == end_; }
  const char* at() const { return at_; }

  // A base 128 varint of at most 64 bits; false at a truncated or longer one.
  bool varint(uint64_t* value) {
    uint64_t result = 0;
    for (int shift = 0; shift < 64 && at_ < end_; shift += 7) {
      const auto byte = static_cast<uint8_t>(*at_++);
      if (shift == 63 && byte > 1) return false;
      result |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) {
        *value = result;
        return true;
      }
    }
    return false;
  }

  bool bytes(std::string_view* value) {
    uint64_t size;
    if (!varint(&size) || size > static_cast<uint64_t>(end_ - at_)) return false;
    *value = std::string_view(at_, size);
    at_ += size;
    return true;
  }

  // The one entry of a packed column of varints.
  bool only_varint(uint64_t* value) {
    std::string_view column;
    if (!bytes(&column)) return false;
    Reader inner(column);
    return inner.varint(value) && inner.done();
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

// Numbers beyond what a signed column can hold are no fast path's business.
inline bool fits(uint64_t value) { return value <= static_cast<uint64_t>(INT64_MAX); }

// Tensor: dtype = 1, shape = 2 (packed), data = 3. What is not the row's own is added to `rest` as field `tag`.
inline bool read_tensor(std::string_view bytes, char tag, Row* row) {
  Reader in(bytes);
  std::string kept;
  unsigned seen = 0;
  while (!in.done()) {
    const char* begin = in.at();
    uint64_t key, value;
    std::string_view field;
    if (!in.varint(&key) || key > 0x1a || (seen & 1u << key)) return false;
    seen |= 1u << key;
    if (key == 0x08) {
      if (!in.varint(&value)) return false;
      kept.append(begin, in.at());
    } else if (key == 0x12) {
      if (!in.bytes(&field)) return false;
      Reader axes(field);
      if (!axes.varint(&value) || !fits(value)) return false;
      row->first_axis = static_cast<int64_t>(value);
      const size_t left = field.size() - static_cast<size_t>(axes.at() - field.data());
      if (left) {
        kept.push_back(0x12);
        append_varint(&kept, left);
        kept.append(axes.at(), left);
      }
    } else if (key == 0x1a) {
      if (!in.bytes(&row->data)) return false;
    } else {
      return false;
    }
  }
  if (!kept.empty()) {
    row->rest.push_back(tag);
    append_varint(&row->rest, kept.size());
    row->rest += kept;
  }
  return !row->data.empty();
}

// StreamRequest with a Frame of one row.
inline bool read_frame(std::string_view message, Row* row) {
  Reader outer(message);
  std::string_view frame, field;
  uint64_t key, value;
  if (!outer.varint(&key) || key != 0x12 || !outer.bytes(&frame) || !outer.done()) return false;
  Reader in(frame);
  uint64_t seen = 0;
  while (!in.done()) {
    const char* begin = in.at();
    if (!in.varint(&key) || key > 0x42 || (seen & 1ull << (key >> 3))) return false;
    seen |= 1ull << (key >> 3);
    switch (key) {
      case 0x08:
        if (!in.varint(&row->frame_id)) return false;
        break;
      case 0x12:
        if (!in.bytes(&field) || field.size() != 8) return false;
        std::memcpy(&row->handle, field.data(), 8);
        break;
      case 0x1a:
        if (!in.only_varint(&value) || !fits(value)) return false;
        row->position = static_cast<int64_t>(value);
        break;
      case 0x22:
        if (!in.only_varint(&value) || !fits(value)) return false;
        row->length = static_cast<int64_t>(value);
        break;
      case 0x2a:
        if (!in.bytes(&field) || !read_tensor(field, 0x2a, row)) return false;
        break;
      case 0x32:
        if (!in.only_varint(&row->timeout_ms) || row->timeout_ms > UINT32_MAX) return false;
        break;
      case 0x3a:
      case 0x42:
        if (!in.only_varint(&value)) return false;
        row->rest.append(begin, in.at());
        break;
      default:
        return false;
    }
  }
  return row->handle && row->position >= 0 && !row->data.empty();
}

// StepRequest.
inline bool read_step(std::string_view message, Row* row) {
  Reader in(message);
  std::string_view field;
  uint64_t key, value, seen = 0;
  while (!in.done()) {
    const char* begin = in.at();
    if (!in.varint(&key) || key > 0x38 || (seen & 1ull << (key >> 3))) return false;
    seen |= 1ull << (key >> 3);
    switch (key) {
      case 0x0a:
        if (!in.bytes(&row->id)) return false;
        break;
      case 0x10:
        if (!in.varint(&value) || !fits(value)) return false;
        row->position = static_cast<int64_t>(value);
        break;
      case 0x1a:
        if (!in.bytes(&field) || !read_tensor(field, 0x1a, row)) return false;
        break;
      case 0x20:
        if (!in.varint(&value) || !fits(value)) return false;
        row->length = static_cast<int64_t>(value);
        break;
      case 0x30:
        if (!in.varint(&row->timeout_ms) || row->timeout_ms > UINT32_MAX) return false;
        break;
      case 0x28:
      case 0x38:
        if (!in.varint(&value)) return false;
        row->rest.append(begin, in.at());
        break;
      default:
        return false;
    }
  }
  return !row->id.empty() && !row->data.empty();
}

// -- answers ---------------------------------------------------------------------------------------------------------

// Columns [M] of rows that a run finished; the emissions of all of them lie behind one another in `outputs`.
struct Answers {
  const uint64_t* frame_id;
  const uint64_t* handle;
  const int64_t* start;
  const int64_t* position;
  const int64_t* length;      // emissions
  const int64_t* durable;     // null: nothing is stored
  const int64_t* offset;      // of a row's first emission
  const char* outputs;
  uint64_t emission_bytes;
  std::string axes;           // the shape's axes behind the first, as packed varints
  std::string_view error = {};  // a serialised Error of every row, none where they were answered
};

inline size_t varint_size(uint64_t value) {
  size_t size = 1;
  while (value >= 0x80) value >>= 7, ++size;
  return size;
}

// Writes into memory that holds `size` bytes; the sizes were added up before.
class Writer {
 public:
  explicit Writer(char* at) : at_(at) {}

  void varint(uint64_t value) {
    while (value >= 0x80) {
      *at_++ = static_cast<char>(value | 0x80);
      value >>= 7;
    }
    *at_++ = static_cast<char>(value);
  }
  void raw(const void* from, size_t size) {
    if (size) std::memcpy(at_, from, size);
    at_ += size;
  }
  void field(char key, uint64_t size) {
    *at_++ = key;
    varint(size);
  }

 private:
  char* at_;
};

// The sizes of a message's parts, and the message made of them. `rows`: places [count] in the columns, whose emissions
// are sent in this order.
class Encoder {
 public:
  Encoder(const Answers& answers, const uint32_t* rows, size_t count) : a_(answers), rows_(rows), count_(count) {
    for (size_t i = 0; i < count; ++i) {
      const uint32_t row = rows[i];
      emissions_ += static_cast<uint64_t>(a_.length[row]);
      frames_ += varint_size(a_.frame_id[row]);
      starts_ += varint_size(static_cast<uint64_t>(a_.start[row]));
      positions_ += varint_size(static_cast<uint64_t>(a_.position[row]));
      lengths_ += varint_size(static_cast<uint64_t>(a_.length[row]));
      if (a_.durable) durable_ += varint_size(static_cast<uint64_t>(a_.durable[row]));
      one_frame_ &= a_.frame_id[row] == a_.frame_id[rows[0]];
      one_length_ &= a_.length[row] == a_.length[rows[0]];
    }
    if (one_frame_) frames_ = varint_size(a_.frame_id[rows[0]]);
    if (one_length_) lengths_ = varint_size(static_cast<uint64_t>(a_.length[rows[0]]));
    data_ = emissions_ * a_.emission_bytes;
    shape_ = varint_size(emissions_) + a_.axes.size();
    tensor_ = 2 + part(shape_) + (data_ ? part(data_) : 0);
  }

  // StreamResponse with an Answer.
  size_t answer_size() {
    answer_ = part(frames_) + part(8 * count_) + part(starts_) + part(positions_) + part(lengths_) + part(tensor_);
    if (!a_.error.empty()) {
      for (size_t i = 0; i < count_; ++i) answer_ += part(row_error_size(i));
    }
    if (a_.durable) answer_ += part(durable_);
    return part(answer_);
  }
  void write_answer(char* at) const {
    Writer out(at);
    out.field(0x12, answer_);
    out.field(0x0a, frames_);
    for (size_t i = 0; i < (one_frame_ ? 1 : count_); ++i) out.varint(a_.frame_id[rows_[i]]);
    out.field(0x12, 8 * count_);
    for (size_t i = 0; i < count_; ++i) out.raw(&a_.handle[rows_[i]], 8);
    out.field(0x1a, starts_);
    for (size_t i = 0; i < count_; ++i) out.varint(static_cast<uint64_t>(a_.start[rows_[i]]));
    out.field(0x22, positions_);
    for (size_t i = 0; i < count_; ++i) out.varint(static_cast<uint64_t>(a_.position[rows_[i]]));
    out.field(0x2a, lengths_);
    for (size_t i = 0; i < (one_length_ ? 1 : count_); ++i) out.varint(static_cast<uint64_t>(a_.length[rows_[i]]));
    tensor(&out, 0x32);
    if (!a_.error.empty()) {
      for (size_t i = 0; i < count_; ++i) {
        out.field(0x3a, row_error_size(i));
        if (i) out.field(0x08, i);
        out.field(0x12, a_.error.size());
        out.raw(a_.error.data(), a_.error.size());
      }
    }
    if (!a_.durable) return;
    out.field(0x42, durable_);
    for (size_t i = 0; i < count_; ++i) out.varint(static_cast<uint64_t>(a_.durable[rows_[i]]));
  }

  // StepResponse, of one row.
  size_t step_size() const {
    const auto position = static_cast<uint64_t>(a_.position[rows_[0]]);
    const uint64_t durable = a_.durable ? static_cast<uint64_t>(a_.durable[rows_[0]]) : 0;
    return (position ? 1 + varint_size(position) : 0) + (durable ? 1 + varint_size(durable) : 0) + part(tensor_);
  }
  void write_step(char* at) const {
    Writer out(at);
    const auto position = static_cast<uint64_t>(a_.position[rows_[0]]);
    const uint64_t durable = a_.durable ? static_cast<uint64_t>(a_.durable[rows_[0]]) : 0;
    if (position) out.field(0x08, position);
    if (durable) out.field(0x10, durable);
    tensor(&out, 0x1a);
  }

 private:
  static size_t part(size_t size) { return 1 + varint_size(size) + size; }
  // RowError.
  size_t row_error_size(size_t row) const { return (row ? 1 + varint_size(row) : 0) + part(a_.error.size()); }

  void tensor(Writer* out, char key) const {
    out->field(key, tensor_);
    out->field(0x08, 1);  // FLOAT32
    out->field(0x12, shape_);
    out->varint(emissions_);
    out->raw(a_.axes.data(), a_.axes.size());
    if (!data_) return;
    out->field(0x1a, data_);
    for (size_t i = 0; i < count_; ++i) {
      const uint32_t row = rows_[i];
      out->raw(a_.outputs + static_cast<uint64_t>(a_.offset[row]) * a_.emission_bytes,
               static_cast<uint64_t>(a_.length[row]) * a_.emission_bytes);
    }
  }

  const Answers& a_;
  const uint32_t* rows_;
  size_t count_;
  uint64_t emissions_ = 0, data_ = 0;
  size_t frames_ = 0, starts_ = 0, positions_ = 0, lengths_ = 0, durable_ = 0, shape_ = 0, tensor_ = 0, answer_ = 0;
  bool one_frame_ = true, one_length_ = true;
};

}  // namespace cellar
