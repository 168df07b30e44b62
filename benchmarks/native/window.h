// What a window measures, and what the commands say.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <ostream>
#include <string>
#include <vector>

using Options = std::map<std::string, std::string>;

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double cpu_s() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

inline std::string get(const Options& options, const std::string& key, const std::string& fallback) {
  auto found = options.find(key);
  return found == options.end() ? fallback : found->second;
}

inline long whole(const Options& options, const std::string& key, long fallback) {
  return std::stol(get(options, key, std::to_string(fallback)));
}

inline double real(const Options& options, const std::string& key, double fallback) {
  auto found = options.find(key);
  return found == options.end() ? fallback : std::stod(found->second);
}

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

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) out += c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32 ? ' ' : c;
  return out + "\"";
}

inline void write_quantiles(std::ostream& out, const char* name, std::vector<float>& values_s) {
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
