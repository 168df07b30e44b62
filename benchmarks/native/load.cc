// A load generator for cellar.v1: one thread, one completion queue, driven window by window over stdin and stdout.
//
//   open name=L kind=stream|unary|predict|generate|churn address=HOST:PORT [key=value ...]
//   window name=L seconds=S [schedule=FILE] [save=FILE]
//   close name=L
//
// Each command is answered by one line of JSON. What the keys mean is said in generator.py.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "wire.h"

using grpc::ByteBuffer;
using Options = std::map<std::string, std::string>;

static double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static double cpu_s() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static std::string get(const Options& options, const std::string& key, const std::string& fallback) {
  auto found = options.find(key);
  return found == options.end() ? fallback : found->second;
}

static long whole(const Options& options, const std::string& key, long fallback) {
  return std::stol(get(options, key, std::to_string(fallback)));
}

static double real(const Options& options, const std::string& key, double fallback) {
  auto found = options.find(key);
  return found == options.end() ? fallback : std::stod(found->second);
}

// What a completion queue gives back: a method of an object.
struct Tag {
  virtual void fire(bool ok) = 0;
  virtual ~Tag() = default;
};

template <class T>
struct Hook : Tag {
  Hook(T* self, void (T::*method)(bool)) : self(self), method(method) {}
  void fire(bool ok) override { (self->*method)(ok); }
  T* self;
  void (T::*method)(bool);
};

// What one window measured. Latencies count from the scheduled send time, or from the send where there is no schedule.
struct Window {
  double begun = 0, until = 0;
  long messages = 0, steps = 0, in_time_messages = 0, in_time_steps = 0, sent = 0;
  std::vector<float> latencies_s, gaps_s;
  std::vector<float> late_s;  // how much later than scheduled each was sent
  std::vector<float> saved;  // pairs of length and latency in seconds; -1 where it failed
  std::map<std::string, long> errors;
  std::string said;  // by the first failure that carried no Reason

  void answered(double scheduled, double at, long num_steps) {
    ++messages;
    steps += num_steps;
    if (at <= until) ++in_time_messages, in_time_steps += num_steps;
    latencies_s.push_back(static_cast<float>(at - scheduled));
  }
};

static std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) out += c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32 ? ' ' : c;
  return out + "\"";
}

static void write_quantiles(std::ostream& out, const char* name, std::vector<float>& values_s) {
  out << ",\"" << name << "\":{\"count\":" << values_s.size();
  if (!values_s.empty()) {
    std::sort(values_s.begin(), values_s.end());
    const std::pair<const char*, double> wanted[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"p999", .999}, {"max", 1}};
    for (auto& [key, q] : wanted) {
      size_t at = std::min(values_s.size() - 1, static_cast<size_t>(std::ceil(q * values_s.size())) - (q > 0));
      out << ",\"" << key << "\":" << 1e3 * values_s[at];
    }
  }
  out << "}";
}

// A load of one kind on one server; kept open between its windows.
class Load {
 public:
  explicit Load(const Options& options) : model_(get(options, "model", "bench-lstm")) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(64 << 20);
    arguments.SetMaxSendMessageSize(64 << 20);
    long channels = whole(options, "channels", 1);
    // else channels to one address would share a connection
    if (channels > 1) arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    for (long i = 0; i < channels; ++i)
      stubs_.push_back(std::make_unique<grpc::GenericStub>(grpc::CreateCustomChannel(
          get(options, "address", ""), grpc::InsecureChannelCredentials(), arguments)));
  }
  virtual ~Load() = default;

  // Has opened what it needs. Throws where the server refused it.
  virtual bool is_ready() const { return true; }
  virtual void begin(const Options&) {}
  // Sends what is due; gives when the next is.
  virtual double send_due(double now) = 0;
  virtual bool is_idle() const = 0;
  virtual void cancel() = 0;
  // Nothing of it is in the queue any more.
  virtual bool is_gone() const = 0;

  bool is_over(double now) const { return now >= window.until; }

  Window window;
  bool is_cancelled = false;  // what was not answered in time
  grpc::CompletionQueue* queue = nullptr;

 protected:
  grpc::GenericStub& stub(size_t i) { return *stubs_[i % stubs_.size()]; }
  // Random numbers for `count` steps of 64, as bytes.
  static std::string values(size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::string out(count * 64 * 4, 0);
    auto* at = reinterpret_cast<float*>(out.data());
    for (size_t i = 0; i < count * 64; ++i) at[i] = normal(random);
    return out;
  }
  void failed(const grpc::Status& status, const grpc::ClientContext& context) {
    auto& trailing = context.GetServerTrailingMetadata();
    auto found = trailing.find("cellar-error-bin");
    if (is_cancelled) {
      ++window.errors["undrained"];
    } else if (found == trailing.end()) {
      ++window.errors["grpc-" + std::to_string(status.error_code())];
      if (window.said.empty()) window.said = status.error_message();
    } else {
      auto* data = reinterpret_cast<const uint8_t*>(found->second.data());
      ++window.errors[std::to_string(wire::reason(data, found->second.size()))];
    }
  }

  std::string model_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
};

constexpr double NEVER = 1e300, NEAR_S = 2e-3, NAP_S = 50e-6;
// Calls that are being opened at once: a gRPC server refuses what is over about a thousand unaccepted ones.
constexpr size_t OPENING = 128;

// Streams of sessions: frames of `steps` steps a session, `depth` of them in flight, the next when one is answered or,
// with period_s, when it is due. As churn: sessions are opened and closed, over and over.
class Streams : public Load {
 public:
  Streams(const Options& options, grpc::CompletionQueue* cq) : Load(options) {
    queue = cq;
    num_sessions_ = whole(options, "sessions", 1);
    steps_ = whole(options, "steps", 1);
    depth_ = whole(options, "depth", 1);
    period_s_ = real(options, "period_s", 0);
    opens_ = whole(options, "opens", 1);
    is_churn_ = get(options, "kind", "") == "churn";
    long num_streams = whole(options, "streams", 1);
    for (long i = 0; i < num_streams; ++i) lanes_.push_back(std::make_unique<Lane>(this, i));
    for (size_t i = 0; i < OPENING; ++i) start_next();
  }

  bool is_ready() const override { return opened_ == lanes_.size(); }

  void begin(const Options&) override {
    for (size_t i = 0; i < lanes_.size(); ++i) {
      if (period_s_ > 0) {
        due_.push({window.begun + period_s_ * i / lanes_.size(), lanes_[i].get()});
      } else {
        for (long k = 0; k < depth_; ++k) lanes_[i]->add(window.begun);
      }
    }
  }

  double send_due(double now) override {
    while (!due_.empty() && due_.top().first <= now) {
      auto [at, lane] = due_.top();
      due_.pop();
      lane->add(at);
      if (at + period_s_ < window.until - 1e-6) due_.push({at + period_s_, lane});
    }
    return due_.empty() ? NEVER : due_.top().first;
  }

  bool is_idle() const override { return due_.empty() && in_flight_ == 0; }
  void cancel() override {
    for (auto& lane : lanes_) lane->context.TryCancel();
    is_closing_ = true;
  }
  bool is_gone() const override {
    return std::all_of(lanes_.begin(), lanes_.end(), [](auto& lane) { return lane->num_pending == 0; });
  }

 private:
  struct Sent {
    uint64_t frame_id;
    double scheduled;
    long rows_left, failed;
  };

  struct Lane {
    Lane(Streams* load, size_t number)
        : load(load), on_start(this, &Lane::started), on_write(this, &Lane::written), on_read(this, &Lane::read),
          values(Load::values(load->num_sessions_ * load->steps_, number)) {
      call = load->stub(number).PrepareCall(&context, "/cellar.v1.Inference/Stream", load->queue);
    }

    void start() {
      call->StartCall(&on_start);
      ++num_pending;
    }

    void started(bool ok) {
      --num_pending;
      if (!ok) return lost();
      if (load->is_churn_ || !load->opens_) {
        for (long i = 1; i <= load->num_sessions_; ++i) handles.push_back(i);
        load->opened();
      } else {
        write(wire::open_sessions(load->model_, load->num_sessions_, 1));
      }
      call->Read(&message, &on_read);
      ++num_pending;
    }

    void add(double scheduled) {
      due.push_back(scheduled);
      ++load->in_flight_;
      pump();
    }

    void pump() {
      if (is_writing || due.empty() || static_cast<long>(sent.size()) >= load->depth_) return;
      double scheduled = due.front();
      due.pop_front();
      uint64_t id = ++next_id;
      sent.push_back({id, scheduled, load->num_sessions_, 0});
      ++load->window.sent;
      if (load->period_s_ > 0) load->window.late_s.push_back(static_cast<float>(now_s() - scheduled));
      if (load->is_churn_) return write(wire::open_sessions(load->model_, load->num_sessions_, id));
      write(wire::frame(handles, position, load->steps_, id, values));
      position += load->steps_;
    }

    void write(const ByteBuffer& out) {
      is_writing = true;
      ++num_pending;
      call->Write(out, &on_write);
    }

    void written(bool ok) {
      --num_pending;
      is_writing = false;
      if (!ok) return lost();
      pump();
    }

    void read(bool ok) {
      --num_pending;
      if (!ok) return lost();
      grpc::Slice slice = wire::flat(message);
      wire::Reader reader(slice.begin(), slice.size());
      wire::Field kind;
      if (reader.next(kind) && kind.type == 2) {
        if (!load->is_churn_ && next_id == 1 && handles.empty()) {
          take_handles(kind);
          load->opened();
        } else if (load->is_churn_ && kind.number == 1) {
          handles.clear();
          take_handles(kind);
          write(wire::close_sessions(handles, next_id));
        } else if (load->is_churn_) {
          complete(sent.begin());
        } else {
          answer(kind);
        }
      }
      call->Read(&message, &on_read);
      ++num_pending;
    }

    void take_handles(const wire::Field& opened) {
      wire::Reader reader(opened);
      wire::Field field;
      while (reader.next(field)) {
        if (field.number != 3 || field.type != 2) continue;
        for (size_t i = 0; i + 8 <= field.size; i += 8) {
          uint64_t handle;
          std::memcpy(&handle, field.data + i, 8);
          handles.push_back(handle);
        }
      }
      if (static_cast<long>(handles.size()) != load->num_sessions_ || std::count(handles.begin(), handles.end(), 0))
        throw std::runtime_error("the server did not open the sessions");
    }

    void answer(const wire::Field& body) {
      wire::Reader reader(body);
      wire::Field field;
      ids.clear();
      long rows = 0;
      std::map<uint64_t, long> failed_by_row;
      while (reader.next(field)) {
        if (field.number == 1 && field.type == 0) {
          ids.push_back(field.value);
        } else if (field.number == 1) {
          for (wire::Reader each(field); !each.is_done();) ids.push_back(each.varint());
        } else if (field.number == 2 && field.type == 2) {
          rows += field.size / 8;
        } else if (field.number == 2 && field.type == 1) {
          ++rows;
        } else if (field.number == 7 && field.type == 2) {
          wire::Reader error(field);
          wire::Field part;
          uint64_t row = 0;
          while (error.next(part))
            if (part.number == 1) row = part.value;
          ++failed_by_row[row];
          ++load->window.errors[std::to_string(wire::row_reason(field))];
        }
      }
      for (long row = 0; row < rows; row += ids.size() == 1 ? rows : 1) {
        if (ids.empty() || (ids.size() > 1 && row >= static_cast<long>(ids.size()))) break;
        uint64_t id = ids.size() == 1 ? ids[0] : ids[row];
        auto found = std::find_if(sent.begin(), sent.end(), [&](const Sent& each) { return each.frame_id == id; });
        if (found == sent.end()) continue;
        found->rows_left -= ids.size() == 1 ? rows : 1;
        found->failed += ids.size() == 1 ? failed_by_row.size() : failed_by_row.count(row);
        if (found->rows_left <= 0) complete(found);
      }
    }

    void complete(std::deque<Sent>::iterator which) {
      double at = now_s();
      Sent done = *which;
      sent.erase(which);
      --load->in_flight_;
      long steps = (load->num_sessions_ - done.failed) * load->steps_;
      if (steps) load->window.answered(done.scheduled, at, steps);
      if (load->period_s_ <= 0 && !load->is_over(at)) return add(at);
      pump();
    }

    void lost() {
      if (load->is_closing_) return;
      throw std::runtime_error("a stream ended");
    }

    Streams* load;
    grpc::ClientContext context;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
    Hook<Lane> on_start, on_write, on_read;
    ByteBuffer message;
    std::string values;
    std::vector<uint64_t> handles, ids;
    std::deque<double> due;
    std::deque<Sent> sent;
    uint64_t position = 0, next_id = 1;
    bool is_writing = false;
    int num_pending = 0;
  };

  void start_next() {
    if (started_ < lanes_.size()) lanes_[started_++]->start();
  }
  void opened() {
    ++opened_;
    start_next();
  }

  using Due = std::pair<double, Lane*>;
  std::priority_queue<Due, std::vector<Due>, std::greater<Due>> due_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  long num_sessions_, steps_, depth_, in_flight_ = 0;
  double period_s_;
  bool opens_, is_churn_, is_closing_ = false;
  size_t started_ = 0, opened_ = 0;
};

// Sessions that send a unary Step each, the next when the last is answered.
class Unary : public Load {
 public:
  Unary(const Options& options, grpc::CompletionQueue* cq) : Load(options) {
    queue = cq;
    steps_ = whole(options, "steps", 1);
    long num_sessions = whole(options, "sessions", 1);
    bool opens = whole(options, "opens", 1);
    for (long i = 0; i < num_sessions; ++i) {
      callers_.push_back(std::make_unique<Caller>(this, i, get(options, "prefix", "unary-") + std::to_string(i)));
    }
    if (!opens) opened_ = callers_.size();
    if (opens)
      for (size_t i = 0; i < OPENING; ++i) open_next();
  }

  bool is_ready() const override { return opened_ == callers_.size(); }
  void begin(const Options&) override {
    for (auto& caller : callers_) caller->send(window.begun);
  }
  double send_due(double) override { return NEVER; }
  bool is_idle() const override { return in_flight_ == 0; }
  void cancel() override {}
  bool is_gone() const override { return in_flight_ == 0; }

 private:
  struct Caller {
    Caller(Unary* load, size_t number, std::string id)
        : load(load), number(number), id(std::move(id)), on_open(this, &Caller::opened),
          on_answer(this, &Caller::answered), values(Load::values(load->steps_, number)) {}

    void call(const char* method, const ByteBuffer& request, Tag* tag) {
      reader.reset();
      context = std::make_unique<grpc::ClientContext>();
      reader = load->stub(number).PrepareUnaryCall(context.get(), method, request, load->queue);
      reader->StartCall();
      reader->Finish(&response, &status, tag);
    }
    void open() {
      call("/cellar.v1.Sessions/OpenSession", wire::open_session(load->model_, id), &on_open);
      ++load->in_flight_;
    }
    void opened(bool) {
      --load->in_flight_;
      if (!status.ok()) throw std::runtime_error("OpenSession: " + status.error_message());
      ++load->opened_;
      load->open_next();
    }
    void send(double at) {
      scheduled = at;
      call("/cellar.v1.Inference/Step", wire::step(id, values), &on_answer);
      ++load->in_flight_;
      ++load->window.sent;
    }
    void answered(bool) {
      double at = now_s();
      --load->in_flight_;
      if (status.ok()) {
        load->window.answered(scheduled, at, load->steps_);
      } else {
        load->failed(status, *context);
      }
      if (!load->is_over(at)) send(at);
    }

    Unary* load;
    size_t number;
    std::string id;
    Hook<Caller> on_open, on_answer;
    std::string values;
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<ByteBuffer>> reader;
    ByteBuffer response;
    grpc::Status status;
    double scheduled = 0;
  };

  void open_next() {
    if (opening_ < callers_.size()) callers_[opening_++]->open();
  }

  std::vector<std::unique_ptr<Caller>> callers_;
  long steps_, in_flight_ = 0;
  size_t opening_ = 0, opened_ = 0;
};

// Calls that arrive by a schedule, whole sequences (Predict) or generations (Generate), at most `limit` of them in flight.
// The schedule is a file of pairs of doubles: seconds after the window's begin, and steps.
class Arrivals : public Load {
 public:
  Arrivals(const Options& options, grpc::CompletionQueue* cq) : Load(options) {
    queue = cq;
    limit_ = whole(options, "limit", 4096);
    timeout_ms_ = whole(options, "timeout_ms", 0);
    is_generating_ = get(options, "kind", "") == "generate";
    if (is_generating_) {
      std::ifstream file(get(options, "texts", ""));
      for (std::string line; std::getline(file, line);) texts_.push_back(line);
      if (texts_.empty()) throw std::runtime_error("texts: no line in it");
    }
    values_ = values(2048, 0);
  }

  void begin(const Options& options) override {
    std::ifstream file(get(options, "schedule", ""), std::ios::binary);
    schedule_.clear();
    double pair[2];
    while (file.read(reinterpret_cast<char*>(pair), sizeof pair)) schedule_.push_back({pair[0], pair[1]});
    if (schedule_.empty()) throw std::runtime_error("schedule: nothing in it");
    next_ = 0;
  }

  double send_due(double now) override {
    while (next_ < schedule_.size() && in_flight_ < limit_ && window.begun + schedule_[next_].first <= now &&
           !is_over(now)) {
      double scheduled = window.begun + schedule_[next_].first;
      long steps = static_cast<long>(schedule_[next_].second);
      if (free_.empty()) {
        calls_.push_back(std::make_unique<Call>(this));
        free_.push_back(calls_.back().get());
      }
      Call* call = free_.back();
      free_.pop_back();
      ++in_flight_;
      ++window.sent;
      call->send(next_++, scheduled, steps);
      now = now_s();
      window.late_s.push_back(static_cast<float>(now - scheduled));
    }
    if (is_over(now) || next_ >= schedule_.size()) {
      next_ = schedule_.size();
      return NEVER;
    }
    return in_flight_ < limit_ ? window.begun + schedule_[next_].first : window.until;
  }

  bool is_idle() const override { return in_flight_ == 0 && next_ >= schedule_.size(); }
  void cancel() override {
    for (auto& call : calls_)
      if (call->context) call->context->TryCancel();
    next_ = schedule_.size();
  }
  bool is_gone() const override { return in_flight_ == 0; }

 private:
  struct Call {
    explicit Call(Arrivals* load)
        : load(load), on_answer(this, &Call::answered), on_start(this, &Call::started), on_read(this, &Call::read),
          on_finish(this, &Call::answered) {}

    void send(size_t number, double at, long num_steps) {
      scheduled = last = at;
      steps = num_steps;
      emitted = 0;
      unary.reset();
      stream.reset();
      context = std::make_unique<grpc::ClientContext>();
      if (load->is_generating_) {
        request = wire::generate(load->model_, load->texts_[number % load->texts_.size()], num_steps, number);
        stream = load->stub(number).PrepareCall(context.get(), "/cellar.v1.Inference/Generate", load->queue);
        stream->StartCall(&on_start);
        return;
      }
      // sequences start at different places of the same random numbers
      size_t first = number * 7 % (2048 - num_steps);
      unary = load->stub(number).PrepareUnaryCall(
          context.get(), "/cellar.v1.Inference/Predict",
          wire::predict(load->model_, load->timeout_ms_, load->values_.data() + first * 256, num_steps * 256), load->queue);
      unary->StartCall();
      unary->Finish(&message, &status, &on_answer);
    }

    void started(bool ok) {
      if (!ok) return stream->Finish(&status, &on_finish);
      stream->WriteLast(request, grpc::WriteOptions(), &ignored);
      stream->Read(&message, &on_read);
    }

    void read(bool ok) {
      if (!ok) return stream->Finish(&status, &on_finish);
      double at = now_s();
      grpc::Slice slice = wire::flat(message);
      wire::Reader reader(slice.begin(), slice.size());
      wire::Field field;
      long count = 0;
      while (reader.next(field)) {
        if (field.number != 1) continue;
        if (field.type == 2) {
          for (wire::Reader each(field); !each.is_done(); ++count) each.varint();
        } else {
          ++count;
        }
      }
      if (count) {
        if (!emitted) {
          first_s = at - scheduled;
        } else {
          load->window.gaps_s.push_back(static_cast<float>(at - last));
        }
        emitted += count;
        last = at;
      }
      stream->Read(&message, &on_read);
    }

    void answered(bool) {
      double at = now_s();
      --load->in_flight_;
      Window& window = load->window;
      if (!status.ok()) {
        load->failed(status, *context);
      } else if (load->is_generating_) {
        window.answered(scheduled, scheduled + first_s, 0);
        window.steps += emitted;
        if (at <= window.until) window.in_time_steps += emitted;
      } else {
        window.answered(scheduled, at, steps);
      }
      window.saved.push_back(static_cast<float>(steps));
      window.saved.push_back(status.ok() ? static_cast<float>(at - scheduled) : -1.f);
      load->free_.push_back(this);
    }

    struct Ignored : Tag {
      void fire(bool) override {}
    };

    Arrivals* load;
    Hook<Call> on_answer, on_start, on_read, on_finish;
    Ignored ignored;
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<ByteBuffer>> unary;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
    ByteBuffer request, message;
    grpc::Status status;
    double scheduled = 0, last = 0, first_s = 0;
    long steps = 0, emitted = 0;
  };

  std::vector<std::pair<double, double>> schedule_;
  std::vector<std::string> texts_;
  std::string values_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<Call*> free_;
  size_t next_ = 0;
  long limit_, timeout_ms_, in_flight_ = 0;
  bool is_generating_;
};

// The commands, one after the other.
class Program {
 public:
  ~Program() {
    for (auto& [name, load] : loads_) load->cancel();
    for (auto& [name, load] : loads_) end(*load);
  }

  // One answer, a line of JSON. Throws std::runtime_error.
  std::string obey(const std::string& verb, const Options& options) {
    std::string name = get(options, "name", "");
    if (verb == "open") return open(name, options);
    auto found = loads_.find(name);
    if (found == loads_.end()) throw std::runtime_error("no load of this name");
    if (verb == "window") return measure(*found->second, options);
    if (verb != "close") throw std::runtime_error("no such command");
    end(*found->second);
    loads_.erase(found);
    return "{\"closed\":\"" + name + "\"}";
  }

 private:
  std::string open(const std::string& name, const Options& options) {
    std::string kind = get(options, "kind", "");
    std::unique_ptr<Load> load;
    if (kind == "stream" || kind == "churn") {
      load = std::make_unique<Streams>(options, &queue_);
    } else if (kind == "unary") {
      load = std::make_unique<Unary>(options, &queue_);
    } else if (kind == "predict" || kind == "generate") {
      load = std::make_unique<Arrivals>(options, &queue_);
      load->queue = &queue_;
    } else {
      throw std::runtime_error("no such kind");
    }
    Load* made = load.get();
    loads_[name] = std::move(load);
    double until = now_s() + 60;
    while (!made->is_ready() && now_s() < until) take(until);
    if (!made->is_ready()) throw std::runtime_error("not opened within 60 s");
    return "{\"opened\":\"" + name + "\"}";
  }

  std::string measure(Load& load, const Options& options) {
    double cpu_before = cpu_s();
    Window& window = load.window;
    window = Window();
    window.begun = now_s();
    window.until = window.begun + real(options, "seconds", 1);
    double last = window.until + real(options, "drain_s", 30);
    load.is_cancelled = false;
    load.begin(options);
    for (;;) {
      double now = now_s();
      double next = load.send_due(now);
      if (load.is_idle()) break;
      if (now > last) {
        if (!load.is_cancelled) load.cancel();
        load.is_cancelled = true;
        if (now > last + 10) throw std::runtime_error("calls did not end");
      }
      take(std::min(next, now + 0.1));
    }
    double seconds = now_s() - window.begun;
    if (std::string path = get(options, "save", ""); !path.empty()) {
      std::ofstream file(path, std::ios::binary);
      file.write(reinterpret_cast<const char*>(window.saved.data()), 4 * window.saved.size());
    }
    std::ostringstream out;
    out << "{\"seconds\":" << seconds << ",\"asked_s\":" << window.until - window.begun << ",\"sent\":" << window.sent
        << ",\"messages\":" << window.messages << ",\"steps\":" << window.steps
        << ",\"in_time_messages\":" << window.in_time_messages << ",\"in_time_steps\":" << window.in_time_steps
        << ",\"cpu_s\":" << cpu_s() - cpu_before;
    write_quantiles(out, "latency_ms", window.latencies_s);
    write_quantiles(out, "gap_ms", window.gaps_s);
    write_quantiles(out, "late_ms", window.late_s);
    out << ",\"errors\":{";
    const char* comma = "";
    for (auto& [reason, count] : window.errors) {
      out << comma << "\"" << reason << "\":" << count;
      comma = ",";
    }
    out << "},\"said\":" << quoted(window.said) << "}";
    return out.str();
  }

  void end(Load& load) {
    load.cancel();
    for (double until = now_s() + 5; !load.is_gone() && now_s() < until;) take(until);
  }

  // Waits for one event until a time and fires it.
  void take(double until) {
    void* tag;
    bool ok;
    double wait_s = until - now_s();
    // the queue waits in whole milliseconds and then one more: what is due sooner is waited for in short sleeps
    bool is_near = wait_s < NEAR_S;
    auto wait = gpr_time_from_nanos(static_cast<int64_t>((wait_s - NEAR_S) * 1e9), GPR_TIMESPAN);
    auto deadline = is_near ? gpr_inf_past(GPR_CLOCK_MONOTONIC) : gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), wait);
    if (queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT) {
      static_cast<Tag*>(tag)->fire(ok);
    } else if (is_near && wait_s > 0) {
      std::this_thread::sleep_for(std::chrono::duration<double>(std::min(wait_s, NAP_S)));
    }
  }

  // last of all to go: loads hold calls on it
  grpc::CompletionQueue queue_;
  std::map<std::string, std::unique_ptr<Load>> loads_;
};

int main() {
  // sleeps of microseconds
  prctl(PR_SET_TIMERSLACK, 1000);
  Program program;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string verb, word;
    Options options;
    words >> verb;
    while (words >> word) {
      auto equals = word.find('=');
      if (equals != std::string::npos) options[word.substr(0, equals)] = word.substr(equals + 1);
    }
    try {
      std::cout << program.obey(verb, options) << std::endl;
    } catch (const std::exception& error) {
      std::cout << "{\"error\":" << quoted(error.what()) << "}" << std::endl;
      return 1;
    }
  }
}
