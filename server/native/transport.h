// A gRPC server that hands a batch of events in and takes a batch of answers out. Knows no model, session or engine.
//
// Threads: one poller drives gRPC's completion queue, one writer makes and sends answers that come many at once; any thread may call
// what is public here. Each call has a lock of its own. The locks of the transport are leaves: no other but a
// bell's is taken while one of them is held.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "wire.h"

namespace cellar {

using Pairs = std::vector<std::pair<std::string, std::string>>;

// How a method's requests come in.
enum class Style {
  kStream,   // messages, as they are asked for
  kSingle,   // one message, which comes with the call
  kStep,     // one message, a StepRequest: as a row where it can be one
  kPredict,  // the same of a PredictRequest
};

enum class Kind { kOpen, kMessage, kHalfClose, kWritten, kDone, kRows };

// What happened to a call. Which fields are filled follows from the kind.
struct Event {
  Kind kind;
  uint64_t call;                 // kRows: the lane
  bool ok = true;                // kOpen: a kSingle call brought its message; kWritten: it went out; kDone: not cancelled
  grpc::ByteBuffer message = {};  // kOpen of kSingle, kMessage
  std::string method = {}, peer = {};   // kOpen
  Pairs metadata = {}, identity = {};   // kOpen; identity: properties of the peer that TLS proved
  double time_left_s = -1.0;     // kOpen; negative: no deadline
};

// Rows whose messages differ in nothing but what the columns hold. All columns are [n].
struct Rows {
  // call, stream (of a unary call: its peer's number), frame_id, handle, position, length, first_axis, size in bytes
  using Numbers = std::array<uint64_t, 8>;

  Style style;
  std::string rest, caller;
  std::vector<Numbers> numbers;
  // Seconds on the steady clock, from when the message was read; of the call and of its timeout the earlier one.
  std::vector<double> deadline_s;  // infinity: none
  bool is_timed = false;           // some row has a deadline
  std::vector<std::string> ids;    // of kStep
  std::string data;
};

// The lane of unary calls; streams are given others.
constexpr uint64_t kUnary = 0;

// Wakes a thread that waits for more than one thing.
class Bell {
 public:
  void ring() {
    std::lock_guard guard(lock_);
    is_rung_ = true;
    rung_.notify_one();
  }
  // Until it is rung, or was since the last time; at most for so long (negative: for good).
  void wait(double timeout_s) {
    std::unique_lock guard(lock_);
    const auto is_rung = [this] { return is_rung_; };
    if (timeout_s < 0) {
      rung_.wait(guard, is_rung);
    } else {
      rung_.wait_for(guard, std::chrono::duration<double>(timeout_s), is_rung);
    }
    is_rung_ = false;
  }

 private:
  std::mutex lock_;
  std::condition_variable rung_;
  bool is_rung_ = false;
};

// Rows that wait for whoever takes the lane's; told of once until they are taken, by its bell or by a kRows.
struct Lane {
  std::vector<Rows> rows;
  uint64_t batch = 1;  // number of the batch that gathers
  std::shared_ptr<Bell> bell;
};

// How calls end that are refused.
struct End {
  grpc::Status status;
  Pairs trailing;
};

struct Counters {
  uint64_t calls, live_calls, messages, rows, writes;
};

class Call;

class Transport {
 public:
  Transport(int max_receive_bytes, const std::vector<std::pair<std::string, int>>& options);
  ~Transport();

  // Before `start`.
  void add_method(const std::string& path, Style style) { methods_[path] = style; }
  // Callers whose value of this header differs never share Rows.
  void set_caller_header(const std::string& name) { caller_header_ = name; }
  int listen(const std::string& address, std::shared_ptr<grpc::ServerCredentials> credentials);
  void start();

  // What happened since the last time; waits for something. False once the transport has ended.
  bool take(std::vector<Event>* events);
  // What rings when rows wait in a lane that was empty; none: there are events for that.
  void set_bell(uint64_t lane, std::shared_ptr<Bell> bell);
  // The rows that wait in a lane; does not wait.
  std::vector<Rows> take_rows(uint64_t lane);

  // From now on the call's frames of one row go into a lane, and it is read ahead until `window` of its messages are
  // not settled, the last one read among them. `stream` is what the rows say of their call beside its number.
  void open_lane(uint64_t call, uint64_t lane, uint64_t stream, int window);
  // The only message of a unary call came as a row and is to be told of as that of any other call.
  void hand_back(uint64_t call, const grpc::ByteBuffer& message);
  // So many messages of the call that did not come as rows, or rows that `send` did not answer, are done with. While
  // there are messages that are not, none comes as a row: it could overtake them.
  void settle(uint64_t call, int messages, int rows);
  // Asks for the next message of a call without a lane. None is read that was not asked for.
  void read(uint64_t call);
  // False where the call is over. `rows` of its lane are settled when the message is out; with `notify` a kWritten
  // follows.
  bool write(uint64_t call, const grpc::ByteBuffer& message, int rows, bool notify);
  // Ends a call, after a last message where one is given.
  void finish(uint64_t call, const grpc::ByteBuffer* message, const grpc::Status& status, const Pairs& trailing);
  void cancel(uint64_t call);
  // The answers of rows, to each call all of its own in one message. With `end` unary calls end with that, and have no
  // message.
  void send(Answers answers, std::shared_ptr<const End> end);

  // Takes no new calls, lets the others end for so long, cancels them, and ends. Blocks.
  void shutdown(double grace_s);

  Counters counters();

 private:
  friend class Call;

  using Batch = std::pair<Answers, std::shared_ptr<const End>>;

  void deliver(const Batch& batch);
  void write_batches();
  void accept();
  void add(std::shared_ptr<Call> call, uint64_t* id);
  void poll();
  void post(Event event);
  void post_row(Call& call, const Row& row);
  std::shared_ptr<Call> find(uint64_t call);
  void forget(uint64_t call);

  grpc::AsyncGenericService service_;
  grpc::ServerBuilder builder_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::thread poller_, writer_;
  std::unordered_map<std::string, Style> methods_;
  std::string caller_header_;
  bool is_down_ = false;  // under accepting_lock_

  std::mutex accepting_lock_;
  std::mutex calls_lock_;
  std::condition_variable calls_ended_;
  std::unordered_map<uint64_t, std::shared_ptr<Call>> calls_;
  uint64_t num_calls_ = 0;

  std::mutex incoming_lock_;
  std::condition_variable arrived_;
  std::vector<Event> events_;
  std::unordered_map<uint64_t, Lane> lanes_;
  bool is_over_ = false;

  std::mutex batches_lock_;
  std::condition_variable posted_;
  std::vector<Batch> batches_;
  bool is_writer_busy_ = false, is_writer_over_ = false;

  std::atomic<uint64_t> messages_{0}, rows_{0}, writes_{0};
};

// One RPC. Lives as long as gRPC holds one of its tags, or the transport knows it.
class Call : public std::enable_shared_from_this<Call> {
 public:
  enum class Op { kOpen, kRead, kWrite, kFinish, kDone };
  // What gRPC hands back when an operation is over; keeps the call alive until then.
  struct Tag {
    Op op;
    std::shared_ptr<Call> call;
  };

  explicit Call(Transport& transport) : transport_(transport) {}
  void request();
  // An operation is over; on the poller.
  void on(Op op, bool ok);

  uint64_t id() const { return id_; }
  Style style() const { return style_; }
  uint64_t lane() const { return lane_; }
  uint64_t stream() const { return stream_; }
  const std::string& caller() const { return caller_; }
  double time_left_s() const;

  void open_lane(uint64_t lane, uint64_t stream, int window);
  void hand_back(const grpc::ByteBuffer& message);
  void settle(int messages, int rows);
  void read();
  bool write(const grpc::ByteBuffer& message, int rows, bool notify);
  void finish(const grpc::ByteBuffer* message, const grpc::Status& status, const Pairs& trailing);
  void cancel() { context_.TryCancel(); }

  // The transport's own, under its lock: the last batch of its lane that took a row of it, and which of its Rows; later
  // rows go there or behind.
  uint64_t batch = 0;
  size_t place = 0;

 private:
  struct Out {
    grpc::ByteBuffer message;
    int rows;
    bool notify;
  };

  Tag* tag(Op op);
  void opened();
  void announce(bool ok);
  void received(bool ok);
  void written(bool ok);
  void over();
  // With the lock held:
  void start_read();
  void start_write();
  void read_ahead();
  void post_half_close();

  Transport& transport_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_io_{&context_};
  Tag tags_[5] = {{Op::kOpen, {}}, {Op::kRead, {}}, {Op::kWrite, {}}, {Op::kFinish, {}}, {Op::kDone, {}}};
  uint64_t id_ = 0;
  Style style_ = Style::kStream;
  std::string caller_;

  std::mutex lock_;
  grpc::ByteBuffer in_;
  std::deque<Out> out_;
  uint64_t lane_ = kUnary, stream_ = 0;
  int window_ = 0, wanted_ = 0;
  int messages_ = 0, rows_ = 0;  // of a lane, not settled
  bool has_lane_ = false;        // it is a stream in one
  bool is_reading_ = false, is_writing_ = false, is_half_closed_ = false, is_half_close_posted_ = false;
  bool is_told_ = false, is_row_ = false, is_finishing_ = false, is_over_ = false;
  bool has_last_ = false;
  grpc::ByteBuffer last_;
  grpc::Status status_;
};

}  // namespace cellar
