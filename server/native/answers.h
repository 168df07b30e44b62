// The messages that answer rows, written without protobuf.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire.h"

namespace cellar {

// Answers to rows, columns [n]; the emissions of all of them lie behind one another in `outputs`.
struct Answers {
  using Column = std::vector<uint64_t>;

  Column call, frame_id, handle, start;
  Column position;  // of a sequence the model's version
  Column length;    // emissions
  Column durable;   // empty: nothing is stored
  Column offset;    // of a row's emissions in the outputs, in bytes
  std::string outputs;
  size_t emission_bytes = 0;
  std::string axes;   // the shape's axes behind the first, as packed varints
  std::string error;  // a serialised Error of every row, none where they were answered
};

// The message to rows at `places` [count] of the answers.
class Encoder {
 public:
  Encoder(const Answers& answers, const uint32_t* places, size_t count) : a_(answers), places_(places), count_(count) {
    for (size_t i = 0; i < count; ++i) emissions_ += a_.length[places[i]];
  }

  // StreamResponse with an Answer.
  std::string answer() const {
    std::string body = with_room(), message, handles;
    for (size_t i = 0; i < count_; ++i) handles.append(reinterpret_cast<const char*>(&a_.handle[places_[i]]), 8);
    column(&body, 0x0a, a_.frame_id, true);
    append_part(&body, 0x12, handles);
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
    std::string message = with_room();
    number(&message, 0x08, a_.position[places_[0]]);
    if (!a_.durable.empty()) number(&message, 0x10, a_.durable[places_[0]]);
    tensor(&message, 0x1a);
    return message;
  }

  // PredictResponse, of one sequence.
  std::string prediction() const {
    std::string message = with_room();
    number(&message, 0x08, a_.position[places_[0]]);
    column(&message, 0x12, a_.length, true);
    tensor(&message, 0x1a);
    errors(&message, 0x22);
    return message;
  }

 private:
  std::string with_room() const {
    std::string made;
    made.reserve(64 + (48 + a_.error.size()) * count_ + emissions_ * a_.emission_bytes);
    return made;
  }

  static void number(std::string* out, char key, uint64_t value) {
    if (!value) return;
    out->push_back(key);
    append_varint(out, value);
  }

  // once: where all are equal, one stands for them.
  void column(std::string* out, char key, const Answers::Column& values, bool once) const {
    bool is_one = once;
    for (size_t i = 1; i < count_ && is_one; ++i) is_one = values[places_[i]] == values[places_[0]];
    std::string packed;
    for (size_t i = 0; i < (is_one ? 1 : count_); ++i) append_varint(&packed, values[places_[i]]);
    append_part(out, key, packed);
  }

  void tensor(std::string* out, char key) const {
    const size_t bytes = emissions_ * a_.emission_bytes;
    std::string head("\x08\x01", 2), shape;  // FLOAT32
    append_varint(&shape, emissions_);
    append_part(&head, 0x12, shape + a_.axes);
    number(&head, 0x1a, bytes);  // of the values: their key and size
    out->push_back(key);
    append_varint(out, head.size() + bytes);
    *out += head;
    for (size_t i = 0; i < count_; ++i) {
      out->append(a_.outputs, a_.offset[places_[i]], a_.length[places_[i]] * a_.emission_bytes);
    }
  }

  // RowErrors.
  void errors(std::string* out, char key) const {
    if (a_.error.empty()) return;
    for (size_t i = 0; i < count_; ++i) {
      std::string row;
      number(&row, 0x08, i);
      append_part(&row, 0x12, a_.error);
      append_part(out, key, row);
    }
  }

  const Answers& a_;
  const uint32_t* places_;
  const size_t count_;
  size_t emissions_ = 0;
};

}  // namespace cellar
