// A load on one server, and how the completion queue calls it back.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <fstream>
#include <memory>
#include <queue>
#include <random>
#include <set>
#include <stdexcept>

#include "window.h"
#include "wire.h"

using grpc::ByteBuffer;

constexpr double NEVER = 1e300, NEAR_S = 2e-3, NAP_S = 50e-6;
// Calls that are being opened at once: a gRPC server refuses what is over about a thousand unaccepted ones.
constexpr size_t OPENING = 128;

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

// A load of one kind on one server; kept open between its windows.
class Load {
 public:
  Load(const Options& options, grpc::CompletionQueue* queue)
      : queue(queue), options_(options), model_(get(options, "model", "bench-lstm")), num_sessions_(whole(options, "sessions", 1)),
        steps_(whole(options, "steps", 1)), opens_(whole(options, "opens", 1)) {
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
  // Ends what is open between windows.
  virtual void finish() { cancel(); }
  // Nothing of it is in the queue any more.
  virtual bool is_gone() const = 0;

  bool is_over(double now) const { return now >= window.until; }

  Window window;
  bool is_cancelled = false;  // what was not answered in time
  grpc::CompletionQueue* const queue;

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

  const Options options_;
  const std::string model_;
  const long num_sessions_, steps_;
  const bool opens_;
  long in_flight_ = 0;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
};
