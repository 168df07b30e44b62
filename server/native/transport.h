// A gRPC server that hands a batch of events in and takes a batch of answers out. Knows no model, session or engine.
//
// Threads: one poller drives gRPC's completion queue and, where it is awake, sends answers; one writer makes and sends
// answers that come many at once; any thread may call what is public. A call's lock may be held when Incoming's or one
// of the transport's is taken; these are leaves: no other is taken while one of them is held.
#pragma once

#include <map>
#include <numeric>
#include <thread>

#include "answers.h"
#include "call.h"

namespace cellar {

// Calls that wait to be matched with a new RPC: a burst of them is taken in without a round through the poller each.
constexpr int kAccepting = 32;
// Answers from which the writer makes and sends them: that takes as long for one as to compute a step.
constexpr size_t kMany = 4;
// Seconds between two rows of a caller that is alone, up to which the answer to the second is worth to stay awake for.
constexpr double kSoon = 500e-6;
// Seconds between them at least, since a run lies there: what comes closer is of several callers.
constexpr double kApart = 50e-6;

class Transport {
 public:
  Incoming incoming;

  Transport(int max_receive_bytes, const std::vector<std::pair<std::string, int>>& options) {
    builder_.RegisterAsyncGenericService(&service_);
    builder_.SetMaxReceiveMessageSize(max_receive_bytes);
    builder_.SetMaxSendMessageSize(-1);
    for (const auto& [name, value] : options) builder_.AddChannelArgument(name, value);
    queue_ = builder_.AddCompletionQueue();
  }

  ~Transport() {
    shutdown(0.0);
    incoming.take();  // calls that nobody took end before gRPC does
  }

  // Before `start`, as what follows.
  void add_method(const std::string& path, Style style) { methods_[path] = style; }

  // Callers whose value of this header differs never share Rows.
  void set_caller_header(const std::string& name) { caller_header_ = name; }

  // The port; 0 where it cannot.
  int listen(const std::string& address, const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    int port = 0;
    builder_.AddListeningPort(address, credentials, &port);
    server_ = builder_.BuildAndStart();
    return server_ ? port : 0;
  }

  void start() {
    for (int i = 0; i < kAccepting; ++i) accept();
    poller_ = std::thread([this] { poll(); });
    writer_ = std::thread([this] { write_batches(); });
  }

  // Takes no new calls, lets the others end for so long, cancels them, and ends. Blocks.
  void shutdown(double grace_s) {
    {
      std::lock_guard guard(accepting_lock_);
      if (is_down_) return;
      is_down_ = true;
    }
    if (server_) {
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(static_cast<long>(1e3 * grace_s)));
      // no call may start an operation on a queue that is shut down
      std::unique_lock guard(calls_lock_);
      calls_ended_.wait(guard, [this] { return calls_.empty(); });
    }
    {
      std::lock_guard guard(batches_lock_);
      is_writer_over_ = true;
      posted_.notify_all();
    }
    if (writer_.joinable()) writer_.join();
    queue_->Shutdown();
    if (poller_.joinable()) {
      poller_.join();
    } else {
      poll();
    }
    incoming.end();
  }

  // A call that is not over; null where it is.
  std::shared_ptr<Call> find(uint64_t number) {
    std::lock_guard guard(calls_lock_);
    const auto found = calls_.find(number);
    return found == calls_.end() ? nullptr : found->second;
  }

  // The answers of rows, to each call all of its own in one message. With `end` unary calls end with that, and have no
  // message. The poller sends them where it is awake; else a few go at once, many by the writer: never before what is
  // still to be sent.
  void send(Answers answers, std::shared_ptr<const End> end) {
    Batch batch(std::move(answers), std::move(end));
    std::unique_lock guard(batches_lock_);
    if (batch.first.call.size() < kMany && !is_poller_awake_ && !is_sending_ && batches_.empty()) {
      guard.unlock();
      deliver(batch);
      return;
    }
    batches_.push_back(std::move(batch));
    has_batches_ = true;
    if (!is_poller_awake_) posted_.notify_one();
  }

  std::map<std::string, uint64_t> counters() {
    std::lock_guard guard(calls_lock_);
    return {{"live_calls", calls_.size()}, {"messages", incoming.num_messages}, {"rows", incoming.num_rows}};
  }

 private:
  using Batch = std::pair<Answers, std::shared_ptr<const End>>;

  void accept() {
    std::lock_guard guard(accepting_lock_);
    if (is_down_) return;
    const auto call = std::make_shared<Call>(incoming);
    auto* at = call.get();
    call->request(service_, queue_.get(), [=](bool ok) { open(*at, ok); }, [=](bool) { end(*at); });
  }

  void poll() {
    void* tag;
    bool ok;
    double asked_s = 0.0, until_s = 0.0;
    while (next(&tag, &ok, &until_s)) {
      auto* operation = static_cast<Operation*>(tag);
      operation->is_started.load(std::memory_order_acquire);
      const std::shared_ptr<Call> call = std::move(operation->call);
      const uint64_t num_rows = incoming.num_rows;
      operation->then(ok);
      if (incoming.num_rows == num_rows) continue;
      const double now = now_s(), since_s = now - asked_s;
      until_s = incoming.is_lone && since_s > kApart && since_s < kSoon ? now + kSoon : 0.0;
      asked_s = now;
    }
  }

  // What gRPC tells of next; false at the end. Until then it stays awake, and answers are for it to send: the core that
  // made a run, whose weights drove all else from its cache, takes 40 us more to send them and to wake the caller.
  bool next(void** tag, bool* ok, double* until_s) {
    using Queue = grpc::CompletionQueue;
    auto status = Queue::TIMEOUT;
    const double left_s = *until_s > 0 ? *until_s - now_s() : 0.0;
    if (left_s > 0) {
      is_poller_awake_ = true;
      watch_.keep(left_s, [&] {
        if (has_batches_) return true;
        status = queue_->AsyncNext(tag, ok, gpr_inf_past(GPR_CLOCK_MONOTONIC));
        return status != Queue::TIMEOUT;
      });
      std::unique_lock guard(batches_lock_);
      is_poller_awake_ = false;
      if (has_batches_) *until_s = 0.0;
      if (!is_sending_) send_batches(guard);
    }
    return status == Queue::TIMEOUT ? queue_->Next(tag, ok) : status == Queue::GOT_EVENT;
  }

  void open(Call& call, bool ok) {
    if (!ok) return call.never_begun();
    accept();
    Source source;
    const auto& context = call.context();
    const auto style = methods_.find(context.method());
    if (style != methods_.end()) source.style = style->second;
    const auto caller = context.client_metadata().find(caller_header_);
    if (caller != context.client_metadata().end()) source.caller.assign(caller->second.data(), caller->second.size());
    source.stream = std::hash<std::string>{}(context.peer()) >> 24;
    {
      std::lock_guard guard(calls_lock_);
      source.number = ++num_calls_;
      calls_[source.number] = call.shared_from_this();
    }
    call.begun(std::move(source));
  }

  void end(Call& call) {
    call.ended();
    std::lock_guard guard(calls_lock_);
    calls_.erase(call.number());
    if (calls_.empty()) calls_ended_.notify_all();
  }

  void write_batches() {
    std::unique_lock guard(batches_lock_);
    while (true) {
      posted_.wait(guard, [this] { return !is_sending_ && (is_writer_over_ || !batches_.empty()); });
      if (batches_.empty()) return;
      send_batches(guard);
    }
  }

  // Sends what is to be sent, with the lock held before and after.
  void send_batches(std::unique_lock<std::mutex>& guard) {
    is_sending_ = true;
    while (!batches_.empty()) {
      std::vector<Batch> taken = std::move(batches_);
      batches_.clear();
      has_batches_ = false;
      guard.unlock();
      for (const Batch& each : taken) deliver(each);
      taken.clear();
      guard.lock();
    }
    is_sending_ = false;
    if (is_writer_over_) posted_.notify_all();
  }

  void deliver(const Batch& batch) {
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
        call->write(buffer_of(encoder.answer()), static_cast<int>(next - at));
      } else if (end) {
        call->finish({}, *end);
      } else {
        call->finish(buffer_of(call->style() == Style::kStep ? encoder.step() : encoder.prediction()), {});
      }
    }
  }

  static grpc::ByteBuffer buffer_of(const std::string& message) {
    grpc::Slice slice(message);
    return grpc::ByteBuffer(&slice, 1);
  }

  grpc::AsyncGenericService service_;
  grpc::ServerBuilder builder_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::thread poller_, writer_;
  Watch watch_;  // the poller's
  std::unordered_map<std::string, Style> methods_;
  std::string caller_header_;

  std::mutex accepting_lock_;
  bool is_down_ = false;

  std::mutex calls_lock_;
  std::condition_variable calls_ended_;
  std::unordered_map<uint64_t, std::shared_ptr<Call>> calls_;
  uint64_t num_calls_ = 0;

  std::mutex batches_lock_;
  std::condition_variable posted_;
  std::vector<Batch> batches_;
  std::atomic<bool> has_batches_ = false;
  std::atomic<bool> is_poller_awake_ = false;  // it sends what is put here
  bool is_sending_ = false;  // somebody sends what was taken from here
  bool is_writer_over_ = false;
};

}  // namespace cellar
