// The wire format of cellar.v1, as far as the fast path reads and writes it: messages that hold one chunk or one
// sequence, and answers.
//
// Reading takes a strict subset of what protobuf takes: each field at most once, packed, known, one row. Everything
// else is left to protobuf itself, so nothing is refused here.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace cellar {

// One chunk of one session, or a whole sequence. Views point into the message that it was read from. -1: none given.
struct Row {
  uint64_t frame_id = 0;
  uint64_t handle = 0;   // of a frame
  std::string_view id;   // of a step
  int64_t position = -1;
  int64_t length = -1;
  int64_t first_axis = -1;  // of the shape
  uint64_t timeout_ms = 0;  // 0: none given
  std::string_view data;
  std::string rest;  // the message without all of the above: rows whose rest is equal differ in nothing else
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  bool done() const { return at_ == end_; }
  const char* at() const { return at_; }
  size_t left() const { return static_cast<size_t>(end_ - at_); }

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
    if (!varint(&size) || size > left()) return false;
    *value = std::string_view(at_, size);
    at_ += size;
    return true;
  }

  // A number of at most `most`: by its key a varint, or the one entry of a packed column of them.
  bool number(uint64_t key, uint64_t most, uint64_t* value) {
    if ((key & 7) == 0) return varint(value) && *value <= most;
    std::string_view column;
    if (!bytes(&column)) return false;
    Reader inner(column);
    return inner.varint(value) && inner.done() && *value <= most;
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

// What a field of a message is to a row. kKept, kText: a number and bytes that go to its rest.
enum class Field { kNone, kFrameId, kHandle, kId, kPosition, kLength, kTensor, kTimeout, kKept, kText };

// The fields of a message by their numbers, and the low bits of each one's key.
struct Layout {
  Field fields[9];
  char wire_types[9];
};
constexpr Layout kFrame = {{Field::kNone, Field::kFrameId, Field::kHandle, Field::kPosition, Field::kLength,
                            Field::kTensor, Field::kTimeout, Field::kKept, Field::kKept},
                           {0, 0, 2, 2, 2, 2, 2, 2, 2}};
constexpr Layout kStepRequest = {{Field::kNone, Field::kId, Field::kPosition, Field::kTensor, Field::kLength,
                                  Field::kKept, Field::kTimeout, Field::kKept, Field::kNone},
                                 {0, 2, 0, 2, 0, 0, 0, 0, 0}};
constexpr Layout kPredictRequest = {{Field::kNone, Field::kText, Field::kKept, Field::kLength, Field::kTensor,
                                     Field::kKept, Field::kTimeout, Field::kKept, Field::kNone},
                                    {0, 2, 0, 2, 2, 0, 0, 0, 0}};

// Tensor: dtype = 1, shape = 2 (packed), data = 3. What is not the row's own is added to `rest` under `key`.
inline bool read_tensor(std::string_view bytes, char key_of_it, Row* row) {
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
      if (!axes.varint(&value) || value > INT64_MAX) return false;
      row->first_axis = static_cast<int64_t>(value);
      if (axes.left()) append_part(&kept, 0x12, {axes.at(), axes.left()});
    } else if (key != 0x1a || !in.bytes(&row->data)) {
      return false;
    }
  }
  if (!kept.empty()) append_part(&row->rest, key_of_it, kept);
  return !row->data.empty();
}

inline bool read_fields(std::string_view message, const Layout& layout, Row* row) {
  Reader in(message);
  uint64_t key, value, seen = 0;
  std::string_view field;
  while (!in.done()) {
    const char* begin = in.at();
    if (!in.varint(&key) || key > 0x42 || (seen & 1ull << (key >> 3))) return false;
    seen |= 1ull << (key >> 3);
    if (static_cast<char>(key & 7) != layout.wire_types[key >> 3]) return false;
    switch (layout.fields[key >> 3]) {
      case Field::kFrameId:
        if (!in.varint(&row->frame_id)) return false;
        break;
      case Field::kHandle:
        if (!in.bytes(&field) || field.size() != 8) return false;
        std::memcpy(&row->handle, field.data(), 8);
        break;
      case Field::kId:
        if (!in.bytes(&row->id)) return false;
        break;
      case Field::kPosition:
        if (!in.number(key, INT64_MAX, &value)) return false;
        row->position = static_cast<int64_t>(value);
        break;
      case Field::kLength:
        if (!in.number(key, UINT32_MAX, &value)) return false;
        row->length = static_cast<int64_t>(value);
        break;
      case Field::kTensor:
        if (!in.bytes(&field) || !read_tensor(field, static_cast<char>(key), row)) return false;
        break;
      case Field::kTimeout:
        if (!in.number(key, UINT32_MAX, &row->timeout_ms)) return false;
        break;
      case Field::kKept:
        if (!in.number(key, UINT64_MAX, &value)) return false;
        row->rest.append(begin, in.at());
        break;
      case Field::kText:
        if (!in.bytes(&field)) return false;
        row->rest.append(begin, in.at());
        break;
      default:
        return false;
    }
  }
  return !row->data.empty();
}

// StreamRequest with a Frame of one row.
inline bool read_frame(std::string_view message, Row* row) {
  Reader outer(message);
  std::string_view frame;
  uint64_t key;
  return outer.varint(&key) && key == 0x12 && outer.bytes(&frame) && outer.done() && read_fields(frame, kFrame, row) &&
         row->handle && row->position >= 0;
}

inline bool read_step(std::string_view message, Row* row) {
  return read_fields(message, kStepRequest, row) && !row->id.empty();
}

// PredictRequest of one sequence.
inline bool read_predict(std::string_view message, Row* row) { return read_fields(message, kPredictRequest, row); }

// -- answers ---------------------------------------------------------------------------------------------------------

// Answers to rows, columns [n]; the emissions of all of them lie behind one another in `outputs`.
struct Answers {
  std::vector<uint64_t> call, frame_id, handle;
  std::vector<int64_t> start, position, length;  // length: emissions; position: of a sequence the model's version
  std::vector<int64_t> durable;                  // empty: nothing is stored
  std::vector<size_t> offset;                    // of a row's emissions in the outputs, in bytes
  std::string outputs;
  size_t emission_bytes = 0;
  std::string axes;   // the shape's axes behind the first, as packed varints
  std::string error;  // a serialised Error of every row, none where they were answered
};

// The message to rows at `places` [count] of the answers.
class Encoder {
 public:
  Encoder(const Answers& answers, const uint32_t* places, size_t count) : a_(answers), places_(places), count_(count) {}

  // StreamResponse with an Answer.
  std::string answer() const {
    std::string body, message;
    body.reserve(64 + 48 * count_ + data_bytes() + a_.error.size() * count_);
    column(&body, 0x0a, a_.frame_id, true);
    body.push_back(0x12);
    append_varint(&body, 8 * count_);
    for (size_t i = 0; i < count_; ++i) body.append(reinterpret_cast<const char*>(&a_.handle[places_[i]]), 8);
    column(&body, 0x1a, a_.start, false);
    column(&body, 0x22, a_.position, false);
    column(&body, 0x2a, a_.length, true);
    tensor(&body, 0x32);
    errors(&body, 0x3a);
    if (!a_.durable.empty()) column(&body, 0x42, a_.durable, false);
    message.reserve(body.size() + 8);
    append_part(&message, 0x12, body);
    return message;
  }

  // StepResponse, of one row.
  std::string step() const {
    std::string message;
    message.reserve(64 + data_bytes());
    number(&message, 0x08, a_.position[places_[0]]);
    if (!a_.durable.empty()) number(&message, 0x10, a_.durable[places_[0]]);
    tensor(&message, 0x1a);
    return message;
  }

  // PredictResponse, of one sequence.
  std::string prediction() const {
    std::string message;
    message.reserve(64 + data_bytes() + a_.error.size());
    number(&message, 0x08, a_.position[places_[0]]);
    column(&message, 0x12, a_.length, true);
    tensor(&message, 0x1a);
    errors(&message, 0x22);
    return message;
  }

 private:
  size_t data_bytes() const {
    size_t size = 0;
    for (size_t i = 0; i < count_; ++i) size += static_cast<size_t>(a_.length[places_[i]]) * a_.emission_bytes;
    return size;
  }

  static void number(std::string* out, char key, int64_t value) {
    if (!value) return;
    out->push_back(key);
    append_varint(out, static_cast<uint64_t>(value));
  }

  // once: where all are equal, one stands for them.
  template <typename T>
  void column(std::string* out, char key, const std::vector<T>& values, bool once) const {
    bool is_one = once;
    for (size_t i = 1; i < count_ && is_one; ++i) is_one = values[places_[i]] == values[places_[0]];
    std::string packed;
    for (size_t i = 0; i < (is_one ? 1 : count_); ++i) append_varint(&packed, static_cast<uint64_t>(values[places_[i]]));
    append_part(out, key, packed);
  }

  void tensor(std::string* out, char key) const {
    const size_t bytes = data_bytes();
    std::string head("\x08\x01", 2), shape;  // FLOAT32
    append_varint(&shape, a_.emission_bytes ? bytes / a_.emission_bytes : 0);
    append_part(&head, 0x12, shape + a_.axes);
    if (bytes) {
      head.push_back(0x1a);
      append_varint(&head, bytes);
    }
    out->push_back(key);
    append_varint(out, head.size() + bytes);
    *out += head;
    for (size_t i = 0; bytes && i < count_; ++i) {
      out->append(a_.outputs, a_.offset[places_[i]], static_cast<size_t>(a_.length[places_[i]]) * a_.emission_bytes);
    }
  }

  // RowErrors.
  void errors(std::string* out, char key) const {
    for (size_t i = 0; !a_.error.empty() && i < count_; ++i) {
      std::string row;
      number(&row, 0x08, static_cast<int64_t>(i));
      append_part(&row, 0x12, a_.error);
      append_part(out, key, row);
    }
  }

  const Answers& a_;
  const uint32_t* places_;
  const size_t count_;
};

}  // namespace cellar
