#include "transport.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

// gRPC hands an operation from the thread that starts it to the poller; where gRPC itself is not built for
// ThreadSanitizer, it is told.
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define HANDED_OVER(at) __tsan_release(at)
#define TAKEN_OVER(at) __tsan_acquire(at)
#else
#define HANDED_OVER(at)
#define TAKEN_OVER(at)
#endif

namespace cellar {

namespace {

// Calls that wait to be matched with a new RPC: a burst of them is taken in without a round through the poller each.
constexpr int kAccepting = 32;
// Answers from which the writer makes and sends them: that takes as long for one as to compute a step.
constexpr size_t kMany = 4;
// Rows among which those are looked for that a new row can join.
constexpr size_t kSearched = 8;

std::string_view flat(const grpc::ByteBuffer& buffer, grpc::Slice* slice) {
  if (!buffer.TrySingleSlice(slice).ok() && !buffer.DumpToSingleSlice(slice).ok()) return {};
  return {reinterpret_cast<const char*>(slice->begin()), slice->size()};
}

// When the time of a message that was read now is over: seconds on the steady clock, which on Linux is Python's
// time.monotonic(). left_s: of its call, negative for no end; infinity where nothing limits it.
double deadline_of(double left_s, uint64_t timeout_ms) {
  if (left_s < 0 && !timeout_ms) return std::numeric_limits<double>::infinity();
  double after_s = timeout_ms ? 1e-3 * static_cast<double>(timeout_ms) : left_s;
  if (left_s >= 0) after_s = std::min(after_s, left_s);
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count() + after_s;
}

grpc::ByteBuffer buffer_of(const std::string& message) {
  grpc::Slice slice(message);
  return grpc::ByteBuffer(&slice, 1);
}

bool read_unary(Style style, std::string_view message, Row* row) {
  if (style == Style::kStep) return read_step(message, row);
  return style == Style::kPredict && read_predict(message, row);
}

}  // namespace

// -- a call ----------------------------------------------------------------------------------------------------------

Call::Tag* Call::tag(Op op) {
  Tag& tag = tags_[static_cast<int>(op)];
  tag.call = shared_from_this();
  HANDED_OVER(&tag);
  return &tag;
}

void Call::request() {
  context_.AsyncNotifyWhenDone(tag(Op::kDone));
  transport_.service_.RequestCall(&context_, &stream_io_, transport_.queue_.get(), transport_.queue_.get(),
                                  tag(Op::kOpen));
}

void Call::on(Op op, bool ok) {
  switch (op) {
    case Op::kOpen:
      if (ok) {
        opened();
      } else {
        tags_[static_cast<int>(Op::kDone)].call.reset();  // it never began: gRPC sends no kDone
      }
      break;
    case Op::kRead:
      received(ok);
      break;
    case Op::kWrite:
      written(ok);
      break;
    case Op::kFinish:
      break;
    case Op::kDone:
      over();
      break;
  }
}

double Call::time_left_s() const {
  const auto deadline = context_.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return -1.0;
  const std::chrono::duration<double> left = deadline - std::chrono::system_clock::now();
  return std::max(0.0, left.count());
}

void Call::opened() {
  transport_.accept();
  const auto found = transport_.methods_.find(context_.method());
  if (found != transport_.methods_.end()) style_ = found->second;
  if (!transport_.caller_header_.empty()) {
    const auto& metadata = context_.client_metadata();
    const auto value = metadata.find(transport_.caller_header_);
    if (value != metadata.end()) caller_.assign(value->second.data(), value->second.size());
  }
  if (style_ != Style::kStream) stream_ = std::hash<std::string>{}(context_.peer()) >> 24;
  transport_.add(shared_from_this(), &id_);
  std::lock_guard guard(lock_);
  if (style_ == Style::kStream) {
    is_told_ = true;
    announce(true);
  } else {
    start_read();
  }
}

// Tells of the call: at once, or with its only message.
void Call::announce(bool ok) {
  Event event{Kind::kOpen, id_};
  event.ok = ok;
  event.message.Swap(&in_);
  event.method = context_.method();
  event.peer = context_.peer();
  event.time_left_s = time_left_s();
  for (const auto& [key, value] : context_.client_metadata()) {
    event.metadata.emplace_back(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
  }
  const auto identity = context_.auth_context();
  for (auto each = identity->begin(); each != identity->end(); ++each) {
    const auto& [key, value] = *each;
    event.identity.emplace_back(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
  }
  transport_.post(std::move(event));
}

// The next message, or the end of them.
void Call::received(bool ok) {
  std::lock_guard guard(lock_);
  is_reading_ = false;
  if (ok) ++transport_.messages_;
  if (style_ != Style::kStream) {
    if (is_over_) return;  // it was cut before anybody heard of it
    Row row;
    grpc::Slice slice;
    is_row_ = ok && read_unary(style_, flat(in_, &slice), &row);
    is_told_ = true;
    if (is_row_) {
      transport_.post_row(*this, row);
      in_.Clear();
    } else {
      announce(ok);
    }
    return;
  }
  if (!ok) {
    is_half_closed_ = true;
    post_half_close();
    return;
  }
  Row row;
  grpc::Slice slice;
  // a message that is no row may name the sessions of rows behind it: these wait until it was dealt with
  if (has_lane_ && messages_ == 0 && read_frame(flat(in_, &slice), &row)) {
    ++rows_;
    transport_.post_row(*this, row);
    in_.Clear();
  } else {
    if (has_lane_) ++messages_;
    Event event{Kind::kMessage, id_};
    event.message.Swap(&in_);
    transport_.post(std::move(event));
  }
  if (has_lane_) {
    read_ahead();
  } else if (wanted_ > 0 && !is_over_) {
    --wanted_;
    start_read();
  }
}

// A stream's end is told of when its rows are answered.
void Call::post_half_close() {
  if (!is_half_closed_ || is_half_close_posted_ || rows_ > 0) return;
  is_half_close_posted_ = true;
  transport_.post(Event{Kind::kHalfClose, id_});
}

void Call::start_read() {
  is_reading_ = true;
  stream_io_.Read(&in_, tag(Op::kRead));
}

void Call::read_ahead() {
  if (!is_reading_ && !is_half_closed_ && !is_over_ && messages_ + rows_ < window_) start_read();
}

void Call::open_lane(uint64_t lane, uint64_t stream, int window) {
  std::lock_guard guard(lock_);
  if (!has_lane_) messages_ = 1;  // the one that made the caller open it; a later lane goes on with what is unsettled
  has_lane_ = true;
  lane_ = lane;
  stream_ = stream;
  window_ = window;
  read_ahead();
}

void Call::hand_back(const grpc::ByteBuffer& message) {
  std::lock_guard guard(lock_);
  if (is_over_ || is_finishing_) return;
  is_row_ = false;
  in_ = message;
  announce(true);
}

void Call::settle(int messages, int rows) {
  std::lock_guard guard(lock_);
  messages_ -= messages;
  rows_ -= rows;
  post_half_close();
  read_ahead();
}

void Call::read() {
  std::lock_guard guard(lock_);
  if (is_reading_) {
    ++wanted_;
  } else if (is_half_closed_ || is_over_) {
    return;
  } else {
    start_read();
  }
}

void Call::start_write() {
  is_writing_ = true;
  if (out_.empty()) {
    if (has_last_) {
      stream_io_.WriteAndFinish(last_, grpc::WriteOptions(), status_, tag(Op::kFinish));
    } else {
      stream_io_.Finish(status_, tag(Op::kFinish));
    }
    return;
  }
  ++transport_.writes_;
  stream_io_.Write(out_.front().message, tag(Op::kWrite));
}

bool Call::write(const grpc::ByteBuffer& message, int rows, bool notify) {
  std::lock_guard guard(lock_);
  if (is_over_ || is_finishing_) return false;
  out_.push_back({message, rows, notify});
  if (!is_writing_) start_write();
  return true;
}

void Call::written(bool ok) {
  std::lock_guard guard(lock_);
  const Out done = std::move(out_.front());
  out_.pop_front();
  is_writing_ = false;
  if (done.notify) {
    Event event{Kind::kWritten, id_};
    event.ok = ok;
    transport_.post(std::move(event));
  }
  if (!is_over_ && (!out_.empty() || is_finishing_)) start_write();
  if (done.rows) {
    rows_ -= done.rows;
    post_half_close();
    read_ahead();
  }
}

void Call::finish(const grpc::ByteBuffer* message, const grpc::Status& status, const Pairs& trailing) {
  std::lock_guard guard(lock_);
  if (is_over_ || is_finishing_) return;
  is_finishing_ = true;
  for (const auto& [key, value] : trailing) context_.AddTrailingMetadata(key, value);
  status_ = status;
  if (message) {
    has_last_ = true;
    last_ = *message;
    ++transport_.writes_;
  }
  if (!is_writing_) start_write();
}

void Call::over() {
  {
    std::lock_guard guard(lock_);
    is_over_ = true;
    if (is_told_ && (!is_row_ || !is_finishing_)) {  // of a row that was answered nobody asks
      Event event{Kind::kDone, id_};
      event.ok = !context_.IsCancelled();
      transport_.post(std::move(event));
    }
  }
  transport_.forget(id_);
}

// -- the transport ---------------------------------------------------------------------------------------------------

Transport::Transport(int max_receive_bytes, const std::vector<std::pair<std::string, int>>& options) {
  builder_.RegisterAsyncGenericService(&service_);
  builder_.SetMaxReceiveMessageSize(max_receive_bytes);
  builder_.SetMaxSendMessageSize(-1);
  for (const auto& [name, value] : options) builder_.AddChannelArgument(name, value);
  queue_ = builder_.AddCompletionQueue();
}

Transport::~Transport() { shutdown(0.0); }

int Transport::listen(const std::string& address, std::shared_ptr<grpc::ServerCredentials> credentials) {
  int port = 0;
  builder_.AddListeningPort(address, std::move(credentials), &port);
  server_ = builder_.BuildAndStart();
  return server_ ? port : 0;
}

void Transport::start() {
  for (int i = 0; i < kAccepting; ++i) accept();
  poller_ = std::thread([this] { poll(); });
  writer_ = std::thread([this] { write_batches(); });
}

void Transport::accept() {
  std::lock_guard guard(accepting_lock_);
  if (!is_down_) std::make_shared<Call>(*this)->request();
}

void Transport::add(std::shared_ptr<Call> call, uint64_t* id) {
  std::lock_guard guard(calls_lock_);
  *id = ++num_calls_;
  calls_[*id] = std::move(call);
}

void Transport::poll() {
  void* raw;
  bool ok;
  while (queue_->Next(&raw, &ok)) {
    auto* tag = static_cast<Call::Tag*>(raw);
    TAKEN_OVER(tag);
    const std::shared_ptr<Call> call = std::move(tag->call);
    call->on(tag->op, ok);
  }
}

void Transport::post(Event event) {
  std::lock_guard guard(incoming_lock_);
  if (events_.empty()) arrived_.notify_one();
  events_.push_back(std::move(event));
}

void Transport::post_row(Call& call, const Row& row) {
  ++rows_;
  const double deadline_s = deadline_of(call.style() == Style::kStream ? -1.0 : call.time_left_s(), row.timeout_ms);
  std::lock_guard guard(incoming_lock_);
  Lane& lane = lanes_[call.lane()];
  auto& groups = lane.rows;
  if (groups.empty()) {
    if (lane.bell) {
      lane.bell->ring();
    } else {
      if (events_.empty()) arrived_.notify_one();
      events_.push_back(Event{Kind::kRows, call.lane()});
    }
  }
  // a call's rows keep their order; of the Rows that it may join, the last few are looked at
  const size_t first = call.batch == lane.batch ? call.place : 0;
  size_t at = groups.size();
  for (size_t i = groups.size(); i > first && i + kSearched > groups.size(); --i) {
    const Rows& each = groups[i - 1];
    if (each.style == call.style() && each.rest == row.rest && each.caller == call.caller()) at = i - 1;
  }
  if (at == groups.size()) {
    groups.emplace_back();
    groups[at].style = call.style();
    groups[at].rest = row.rest;
    groups[at].caller = call.caller();
  }
  call.batch = lane.batch;
  call.place = at;
  Rows& rows = groups[at];
  rows.numbers.push_back({call.id(), call.stream(), row.frame_id, row.handle, static_cast<uint64_t>(row.position),
                          static_cast<uint64_t>(row.length), static_cast<uint64_t>(row.first_axis), row.data.size()});
  rows.data.append(row.data);
  rows.deadline_s.push_back(deadline_s);
  rows.is_timed |= deadline_s < std::numeric_limits<double>::infinity();
  if (call.style() == Style::kStep) rows.ids.emplace_back(row.id);
}

bool Transport::take(std::vector<Event>* events) {
  std::unique_lock guard(incoming_lock_);
  arrived_.wait(guard, [this] { return is_over_ || !events_.empty(); });
  std::swap(*events, events_);
  return !events->empty();
}

void Transport::set_bell(uint64_t lane, std::shared_ptr<Bell> bell) {
  std::lock_guard guard(incoming_lock_);
  lanes_[lane].bell = std::move(bell);
}

std::vector<Rows> Transport::take_rows(uint64_t lane) {
  std::vector<Rows> taken;
  std::lock_guard guard(incoming_lock_);
  Lane& found = lanes_[lane];
  taken.swap(found.rows);
  ++found.batch;
  return taken;
}

std::shared_ptr<Call> Transport::find(uint64_t call) {
  std::lock_guard guard(calls_lock_);
  const auto found = calls_.find(call);
  return found == calls_.end() ? nullptr : found->second;
}

void Transport::forget(uint64_t call) {
  std::shared_ptr<Call> last;  // dies after the lock is gone
  std::lock_guard guard(calls_lock_);
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  last = std::move(found->second);
  calls_.erase(found);
  if (calls_.empty()) calls_ended_.notify_all();
}

void Transport::open_lane(uint64_t call, uint64_t lane, uint64_t stream, int window) {
  if (const auto found = find(call)) found->open_lane(lane, stream, window);
}

void Transport::hand_back(uint64_t call, const grpc::ByteBuffer& message) {
  if (const auto found = find(call)) found->hand_back(message);
}

void Transport::settle(uint64_t call, int messages, int rows) {
  if (const auto found = find(call)) found->settle(messages, rows);
}

void Transport::read(uint64_t call) {
  if (const auto found = find(call)) found->read();
}

bool Transport::write(uint64_t call, const grpc::ByteBuffer& message, int rows, bool notify) {
  const auto found = find(call);
  return found && found->write(message, rows, notify);
}

void Transport::finish(uint64_t call, const grpc::ByteBuffer* message, const grpc::Status& status,
                       const Pairs& trailing) {
  if (const auto found = find(call)) found->finish(message, status, trailing);
}

void Transport::cancel(uint64_t call) {
  if (const auto found = find(call)) found->cancel();
}

// A few go at once, many by the writer: never before what it has still to send.
void Transport::send(Answers answers, std::shared_ptr<const End> end) {
  Batch batch(std::move(answers), std::move(end));
  {
    std::lock_guard guard(batches_lock_);
    if (batch.first.call.size() >= kMany || !batches_.empty() || is_writer_busy_) {
      if (batches_.empty()) posted_.notify_one();
      batches_.push_back(std::move(batch));
      return;
    }
  }
  deliver(batch);
}

void Transport::deliver(const Batch& batch) {
  const auto& [answers, end] = batch;
  const auto& calls = answers.call;
  std::vector<uint32_t> places(calls.size());
  std::iota(places.begin(), places.end(), 0);
  std::stable_sort(places.begin(), places.end(), [&](uint32_t a, uint32_t b) { return calls[a] < calls[b]; });
  for (size_t at = 0, next; at < places.size(); at = next) {
    for (next = at + 1; next < places.size() && calls[places[next]] == calls[places[at]];) ++next;
    const auto call = find(calls[places[at]]);
    if (!call) continue;  // it is gone, and nobody waits for its rows
    const Encoder encoder(answers, &places[at], next - at);
    if (call->style() == Style::kStream) {
      call->write(buffer_of(encoder.answer()), static_cast<int>(next - at), false);
    } else if (end) {
      call->finish(nullptr, end->status, end->trailing);
    } else {
      const auto message = buffer_of(call->style() == Style::kStep ? encoder.step() : encoder.prediction());
      call->finish(&message, grpc::Status::OK, {});
    }
  }
}

void Transport::write_batches() {
  std::vector<Batch> taken;
  std::unique_lock guard(batches_lock_);
  while (true) {
    posted_.wait(guard, [this] { return is_writer_over_ || !batches_.empty(); });
    if (batches_.empty()) return;
    taken.swap(batches_);
    is_writer_busy_ = true;
    guard.unlock();
    for (const Batch& each : taken) deliver(each);
    taken.clear();
    guard.lock();
    is_writer_busy_ = false;
  }
}

void Transport::shutdown(double grace_s) {
  {
    std::lock_guard guard(accepting_lock_);
    if (is_down_) return;
    is_down_ = true;
  }
  if (server_) {
    const auto grace = std::chrono::duration<double>(grace_s);
    server_->Shutdown(std::chrono::system_clock::now() +
                      std::chrono::duration_cast<std::chrono::system_clock::duration>(grace));
    // no call may start an operation on a queue that is shut down
    std::unique_lock guard(calls_lock_);
    calls_ended_.wait(guard, [this] { return calls_.empty(); });
  }
  {
    std::lock_guard guard(batches_lock_);
    is_writer_over_ = true;
  }
  posted_.notify_all();
  if (writer_.joinable()) writer_.join();
  queue_->Shutdown();
  if (poller_.joinable()) {
    poller_.join();
  } else {
    poll();
  }
  {
    std::lock_guard guard(incoming_lock_);
    is_over_ = true;
  }
  arrived_.notify_all();
}

Counters Transport::counters() {
  std::lock_guard guard(calls_lock_);
  return {num_calls_, calls_.size(), messages_, rows_, writes_};
}

}  // namespace cellar
