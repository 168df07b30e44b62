// A load generator for cellar.v1 and the Open Inference Protocol: one thread, one completion queue, driven window by window over stdin and stdout.
//
//   open name=L kind=stream|unary|predict|generate|churn|oip-stream|oip-unary address=HOST:PORT [key=value ...]
//   window name=L seconds=S [schedule=FILE] [save=FILE]
//   close name=L
//
// Each command is answered by one line of JSON. What the keys mean is said in generator.py.
#include <sys/prctl.h>

#include <iostream>
#include <sstream>
#include <thread>

#include "arrivals.h"
#include "sequences.h"
#include "streams.h"
#include "unary.h"

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
    } else if (kind == "oip-stream") {
      load = std::make_unique<StreamedSequences>(options, &queue_);
    } else if (kind == "oip-unary") {
      load = std::make_unique<CalledSequences>(options, &queue_);
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
    load.finish();
    for (double until = now_s() + 5; !load.is_gone() && now_s() < until;) take(until);
    if (load.is_gone()) return;
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
