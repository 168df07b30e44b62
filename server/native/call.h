// One RPC.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <utility>

#include "incoming.h"

namespace cellar {

// How a call ends: its status, and trailing metadata.
struct End {
  grpc::Status status;
  std::vector<std::pair<std::string, std::string>> trailing = {};
};

// What gRPC hands back to the poller when an operation of a call is over, and what is to be done then. It keeps the
// call alive until then.
struct Operation {
  std::function<void(bool ok)> then;
  std::shared_ptr<Call> call = {};
  // Says again what gRPC orders, which ThreadSanitizer does not see: it is started before it is over.
  std::atomic<bool> is_started = false;
};

// Lives as long as one of its operations does, or the transport knows it. Any thread may call what is public.
class Call : public std::enable_shared_from_this<Call> {
 public:
  explicit Call(Incoming& incoming) : incoming_(incoming) {}

  const grpc::GenericServerContext& context() const { return context_; }
  uint64_t number() const { return source_.number; }
  Style style() const { return source_.style; }

  // Seconds on the steady clock; infinity: none.
  double deadline_s() const {
    const auto deadline = context_.deadline();
    if (deadline == std::chrono::system_clock::time_point::max()) return kNever;
    return now_s() + Seconds(deadline - std::chrono::system_clock::now()).count();
  }

  // From now on the call's frames of one row go into a lane, and it is read ahead until `window` of its messages are
  // not settled, the last one read among them. `stream` is what the rows say of their call beside its number.
  void open_lane(uint64_t lane, uint64_t stream, int window) {
    std::lock_guard guard(lock_);
    if (!window_) num_messages_ = 1;  // the one that made the caller open it; a later lane goes on with what there is
    source_.lane = lane;
    source_.stream = stream;
    window_ = window;
    go_on();
  }

  // From now on the call is read ahead until `window` of its messages are not settled. None of them comes as a row.
  void read_ahead(int window) {
    std::lock_guard guard(lock_);
    window_ = window;
    go_on();
  }

  // The only message of a unary call came as a row and is to be told of as that of any other call.
  void hand_back(const grpc::ByteBuffer& message) {
    std::lock_guard guard(lock_);
    if (is_over_ || is_finishing_) return;
    incoming_.post({Kind::kOpen, number(), true, message, shared_from_this()});
  }

  // So many messages of the call that did not come as rows, or rows that were not answered as rows, are done with.
  // While there are messages that are not, none comes as a row: it could overtake them.
  void settle(int messages, int rows) {
    std::lock_guard guard(lock_);
    num_messages_ -= messages;
    num_rows_ -= rows;
    go_on();
  }

  // Asks for the next message of a call without a lane. None is read that was not asked for.
  void read() {
    std::lock_guard guard(lock_);
    start_read();
  }

  // False where the call is over. `rows` of its lane are settled when the message is out; without any a kWritten
  // follows.
  bool write(const grpc::ByteBuffer& message, int rows) {
    std::lock_guard guard(lock_);
    if (is_over_ || is_finishing_) return false;
    out_.emplace_back(message, rows);
    if (!is_writing_) start_write();
    return true;
  }

  // Ends the call, after a last message where that is one.
  void finish(const grpc::ByteBuffer& message, const End& end) {
    std::lock_guard guard(lock_);
    if (is_over_ || is_finishing_) return;
    is_finishing_ = true;
    for (const auto& [key, value] : end.trailing) context_.AddTrailingMetadata(key, value);
    status_ = end.status;
    last_ = message;
    if (!is_writing_) start_write();
  }

  // -- on the transport's poller --

  // Waits for an RPC; then `open` is called, and `end` where it was one and is over.
  void request(grpc::AsyncGenericService& service, grpc::ServerCompletionQueue* queue,
               std::function<void(bool ok)> open, std::function<void(bool ok)> end) {
    opening_.then = std::move(open);
    ending_.then = std::move(end);
    context_.AsyncNotifyWhenDone(started(ending_));
    service.RequestCall(&context_, &stream_io_, queue, queue, started(opening_));
  }

  // The server ended first: gRPC tells of no end.
  void never_begun() { ending_.call.reset(); }

  void begun(Source source) {
    std::lock_guard guard(lock_);
    source_ = std::move(source);
    if (style() == Style::kStream) {
      incoming_.post({Kind::kOpen, number(), true, {}, shared_from_this()});
    } else {
      start_read();
    }
  }

  void ended() {
    std::lock_guard guard(lock_);
    is_over_ = true;
    // of a unary call that was answered nobody asks
    if (style() == Style::kStream || !is_finishing_) incoming_.post({Kind::kDone, number(), !context_.IsCancelled()});
  }

 private:
  Operation* started(Operation& operation) {
    operation.call = shared_from_this();
    operation.is_started.store(true, std::memory_order_release);
    return &operation;
  }

  // The next message, or the end of them.
  void received(bool ok) {
    std::lock_guard guard(lock_);
    is_reading_ = false;
    if (is_over_) return;  // nobody waits for it
    if (ok) ++incoming_.num_messages;
    const bool is_row = ok && post_row();
    if (style() != Style::kStream) {
      if (!is_row) incoming_.post({Kind::kOpen, number(), ok, in_, shared_from_this()});
    } else if (!ok) {
      is_half_closed_ = true;
    } else if (is_row) {
      ++num_rows_;
    } else {
      if (window_) ++num_messages_;
      incoming_.post({Kind::kMessage, number(), true, in_});
    }
    in_.Clear();
    go_on();
  }

  void written() {
    std::lock_guard guard(lock_);
    const int rows = out_.front().second;
    out_.pop_front();
    is_writing_ = false;
    if (!rows) incoming_.post({Kind::kWritten, number()});
    if (!is_over_ && (!out_.empty() || is_finishing_)) start_write();
    num_rows_ -= rows;
    go_on();
  }

  // With the lock held, here and below. Tells of the message as a row; false where it is none.
  bool post_row() {
    Row row;
    grpc::Slice slice;
    if (!in_.TrySingleSlice(&slice).ok() && !in_.DumpToSingleSlice(&slice).ok()) return false;
    const std::string_view message(reinterpret_cast<const char*>(slice.begin()), slice.size());
    double deadline_s = kNever;
    if (style() == Style::kStream) {
      // a message that is no row may name the sessions of rows behind it: these wait until it was dealt with
      if (source_.lane == kUnary || num_messages_ || !read_frame(message, &row)) return false;
    } else {
      if (style() == Style::kSingle) return false;
      const bool is_row = style() == Style::kStep ? read_step(message, &row) : read_predict(message, &row);
      if (!is_row) return false;
      deadline_s = this->deadline_s();
    }
    if (row.timeout_ms) deadline_s = std::min(deadline_s, now_s() + 1e-3 * static_cast<double>(row.timeout_ms));
    incoming_.post_row(source_, row, deadline_s);
    return true;
  }

  // The next message of a lane is asked for; a stream's end is told of when its rows are answered.
  void go_on() {
    if (num_messages_ + num_rows_ < window_) start_read();
    if (!is_half_closed_ || is_half_close_told_ || is_over_ || num_rows_ > 0) return;
    is_half_close_told_ = true;
    incoming_.post({Kind::kHalfClose, number()});
  }

  void start_read() {
    if (is_reading_ || is_half_closed_ || is_over_) return;
    is_reading_ = true;
    stream_io_.Read(&in_, started(reading_));
  }

  void start_write() {
    is_writing_ = true;
    if (!out_.empty()) {
      stream_io_.Write(out_.front().first, started(writing_));
    } else if (last_.Valid()) {
      stream_io_.WriteAndFinish(last_, grpc::WriteOptions(), status_, started(finishing_));
    } else {
      stream_io_.Finish(status_, started(finishing_));
    }
  }

  Incoming& incoming_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_io_{&context_};
  Operation opening_, ending_;
  Operation reading_{[this](bool ok) { received(ok); }};
  Operation writing_{[this](bool) { written(); }};
  Operation finishing_{[](bool) {}};

  std::mutex lock_;
  Source source_;
  grpc::ByteBuffer in_, last_;
  std::deque<std::pair<grpc::ByteBuffer, int>> out_;  // and the rows that each settles
  grpc::Status status_;
  int window_ = 0;                       // 0: a message is read when it is asked for
  int num_messages_ = 0, num_rows_ = 0;  // of the window, not settled
  bool is_reading_ = false, is_writing_ = false, is_finishing_ = false, is_over_ = false;
  bool is_half_closed_ = false, is_half_close_told_ = false;
};

}  // namespace cellar
