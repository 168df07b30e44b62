// What has come and waits to be taken: events of calls, and rows.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "wire.h"

namespace cellar {

class Call;

using Seconds = std::chrono::duration<double>;

constexpr double kNever = std::numeric_limits<double>::infinity();
// The lane of unary calls; streams are given others.
constexpr uint64_t kUnary = 0;
// Seconds for which one who waits stays awake: a caller that sends again when it is answered is back by then, and to wake
// a core takes half as long.
constexpr double kAwake = 100e-6;
// Waits for which it sleeps at once, after another had kept the core.
constexpr int kAsleep = 500;
// Rows among which those are looked for that a new row can join.
constexpr size_t kSearched = 8;

// On the steady clock, which on Linux is Python's time.monotonic().
inline double now_s() { return Seconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// How a method's requests come in.
enum class Style {
  kStream,   // messages, as they are asked for
  kSingle,   // one message, which comes with the call
  kStep,     // one message, a StepRequest: as a row where it can be one
  kPredict,  // the same of a PredictRequest
};

enum class Kind { kOpen, kMessage, kHalfClose, kWritten, kDone, kRows };

// What happened to a call.
struct Event {
  Kind kind;
  uint64_t number;                  // of the call; kRows: of the lane
  bool ok = true;                   // kOpen: a call that is no stream brought its message; kDone: not cancelled
  grpc::ByteBuffer message = {};    // kMessage; kOpen of a call that is no stream
  std::shared_ptr<Call> call = {};  // kOpen
};

// Rows whose messages differ in nothing but what the columns hold. All columns are [n].
struct Rows {
  // call, stream (of a unary call: its peer's number), frame_id, handle, position, length, first_axis, size in bytes
  using Numbers = std::array<uint64_t, 8>;

  Style style;
  std::string rest, caller;
  std::vector<Numbers> numbers = {};
  std::vector<double> deadline_s = {};  // on the steady clock; infinity: none
  bool is_timed = false;                // some row has a deadline
  std::vector<std::string> ids = {};    // of kStep
  std::string data = {};
};

// The call that rows come by, as they tell of it.
struct Source {
  Style style = Style::kStream;
  uint64_t number = 0, stream = 0, lane = kUnary;
  std::string caller;
  // Incoming's own, under its lock: the last batch of the lane that took a row of the call, and which of its Rows;
  // later rows go there or behind.
  uint64_t batch = 0;
  size_t place = 0;
};

// Stays awake for what is about to come; of one thread.
class Watch {
 public:
  // Until it has come, at most for so long; others go first. Where one of them kept the core, it is not done for a
  // while: who sleeps gets the core from such a one, who yields does not.
  template <typename HasCome>
  void keep(double most_s, HasCome has_come) {
    if (num_asleep_ > 0 && num_asleep_--) return;
    const double until = now_s() + most_s;
    while (!has_come() && now_s() < until) std::this_thread::yield();
    if (now_s() > until + kAwake) num_asleep_ = kAsleep;
  }

 private:
  int num_asleep_ = 0;  // of the next times
};

// Wakes a thread that waits for more than one thing.
class Bell {
 public:
  void ring() {
    std::lock_guard guard(lock_);
    is_rung_ = true;
    rung_.notify_one();
  }

  // Until it is rung, or was since the last time; at most for so long (negative: for good, which is thirty years). On
  // one thread. stays_awake: something is about to come, it does not sleep at once.
  void wait(double timeout_s, bool stays_awake) {
    if (stays_awake) {
      watch_.keep(timeout_s < 0 ? kAwake : std::min(timeout_s, kAwake), [this] { return is_rung_.load(); });
    }
    std::unique_lock guard(lock_);
    rung_.wait_for(guard, Seconds(timeout_s < 0 ? 1e9 : timeout_s), [this] { return is_rung_.load(); });
    is_rung_ = false;
  }

 private:
  std::mutex lock_;
  std::condition_variable rung_;
  std::atomic<bool> is_rung_ = false;
  Watch watch_;
};

// Events for one thread, rows for whoever takes those of a lane. Any thread may call what is here. Its lock is a leaf.
class Incoming {
 public:
  std::atomic<uint64_t> num_messages{0}, num_rows{0};
  std::atomic<bool> is_lone{false};  // what a bell's owner took last was one row

  void post(Event event) {
    std::lock_guard guard(lock_);
    if (events_.empty()) arrived_.notify_one();
    events_.push_back(std::move(event));
  }

  // Told of once until the rows of the lane are taken: by its bell, or by a kRows.
  void post_row(Source& source, const Row& row, double deadline_s) {
    ++num_rows;
    std::unique_lock guard(lock_);
    Lane& lane = lanes_[source.lane];
    const bool is_first = lane.rows.empty();
    Rows& rows = place(lane, source, row);
    rows.numbers.push_back({source.number, source.stream, row.frame_id, row.handle, row.position, row.length,
                            row.first_axis, row.data.size()});
    rows.data.append(row.data);
    rows.deadline_s.push_back(deadline_s);
    rows.is_timed |= deadline_s < kNever;
    if (source.style == Style::kStep) rows.ids.emplace_back(row.id);
    if (!is_first) return;
    const auto bell = lane.bell;
    guard.unlock();
    if (bell) {
      bell->ring();
    } else {
      post({Kind::kRows, source.lane});
    }
  }

  // What happened since the last time; waits for something. Nothing after the end.
  std::vector<Event> take() {
    std::vector<Event> taken;
    std::unique_lock guard(lock_);
    arrived_.wait(guard, [this] { return is_over_ || !events_.empty(); });
    taken.swap(events_);
    return taken;
  }

  // The rows that wait in a lane; does not wait.
  std::vector<Rows> take_rows(uint64_t number) {
    std::vector<Rows> taken;
    std::lock_guard guard(lock_);
    Lane& lane = lanes_[number];
    taken.swap(lane.rows);
    ++lane.batch;
    if (lane.bell && !taken.empty()) is_lone = taken.size() == 1 && taken[0].numbers.size() == 1;
    return taken;
  }

  // What rings when rows wait in a lane that was empty; none: there are events for that.
  void set_bell(uint64_t lane, std::shared_ptr<Bell> bell) {
    std::lock_guard guard(lock_);
    lanes_[lane].bell = std::move(bell);
  }

  // Nothing more comes.
  void end() {
    std::lock_guard guard(lock_);
    is_over_ = true;
    arrived_.notify_all();
  }

 private:
  struct Lane {
    std::vector<Rows> rows;
    uint64_t batch = 1;  // number of the batch that gathers
    std::shared_ptr<Bell> bell;
  };

  // The Rows that a row joins: a call's rows keep their order; of those that it may join, the last few are looked at.
  Rows& place(Lane& lane, Source& source, const Row& row) {
    auto& groups = lane.rows;
    const size_t first = source.batch == lane.batch ? source.place : 0;
    size_t at = groups.size();
    for (size_t i = groups.size(); i > first && i + kSearched > groups.size(); --i) {
      const Rows& each = groups[i - 1];
      if (each.style == source.style && each.rest == row.rest && each.caller == source.caller) at = i - 1;
    }
    if (at == groups.size()) groups.push_back({source.style, row.rest, source.caller});
    source.batch = lane.batch;
    source.place = at;
    return groups[at];
  }

  std::mutex lock_;
  std::condition_variable arrived_;
  std::vector<Event> events_;
  std::unordered_map<uint64_t, Lane> lanes_;
  bool is_over_ = false;
};

}  // namespace cellar
