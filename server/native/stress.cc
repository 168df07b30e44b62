// Streams and unary calls opened, used and cut at random points: `stress CALLS THREADS SEED`. A thread plays the
// server's part (lanes, answers, half-closes), others are callers. Ends with 0 where nothing is left over; run it under
// sanitizers.
#include <grpcpp/generic/generic_stub.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>

#include "transport.h"

using namespace cellar;

namespace {

const char* const kStreamMethod = "/cellar.v1.Inference/Stream";
const char* const kStepMethod = "/cellar.v1.Inference/Step";
const char* const kPredictMethod = "/cellar.v1.Inference/Predict";

grpc::ByteBuffer buffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string part(char key, const std::string& bytes) {
  std::string made(1, key);
  append_varint(&made, bytes.size());
  return made + bytes;
}

// StreamRequest with a frame of one row; StepRequest.
std::string frame(uint64_t id, const std::string& values) {
  std::string body("\x08");
  append_varint(&body, id + 1);
  body += part(0x12, std::string("\1\0\0\0\0\0\0\1", 8)) + part(0x1a, std::string(1, '\0'));
  return part(0x12, body + part(0x2a, part(0x1a, values)));
}
std::string step(const std::string& values) { return part(0x0a, "id") + part(0x1a, part(0x1a, values)); }
std::string predict(const std::string& values) { return part(0x0a, "model") + part(0x22, part(0x1a, values)); }

size_t resident_bytes() {
  size_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Most rows are answered, some refused: unary calls with a status, or with an error in their message.
void answer(Transport& transport, std::vector<Rows> taken) {
  static std::atomic<unsigned> turn{0};
  for (auto& rows : taken) {
    Answers answers;
    for (const auto& row : rows.numbers) {
      if (rows.style != Style::kStream && turn++ % 5 == 0) {
        if (const auto call = transport.find(row[0])) call->hand_back(buffer("as it came"));
        continue;
      }
      answers.call.push_back(row[0]);
      answers.frame_id.push_back(row[2]);
    }
    const size_t n = answers.call.size();
    answers.handle.assign(n, 1);
    answers.start.assign(n, 1);
    answers.position.assign(n, 1);
    answers.axes = "\4";
    answers.emission_bytes = 16;
    std::shared_ptr<End> end;
    const unsigned kind = turn++ % 8;
    answers.length.assign(n, kind < 2 ? 0 : 1);
    for (size_t i = 0; i < n; ++i) answers.offset.push_back(kind < 2 ? 0 : 16 * i);
    if (kind < 2) {
      answers.error = std::string("\x08\x0f", 2);
    } else {
      answers.outputs.assign(n * 16, 'y');
    }
    if (kind == 0) {
      end = std::make_shared<End>(End{{grpc::StatusCode::RESOURCE_EXHAUSTED, "no room"}, {{"key-bin", "value"}}});
    }
    transport.send(std::move(answers), std::move(end));
  }
}

// An engine: takes the rows of a lane when its bell rings.
void run(Transport& transport, uint64_t lane, Bell& bell, const std::atomic<bool>& is_over) {
  while (!is_over) {
    bell.wait(lane % 2 ? -1.0 : 0.05, lane % 2);
    answer(transport, transport.incoming.take_rows(lane));
  }
}

// What the Python side does, without Python.
void serve(Transport& transport) {
  std::vector<Event> events;
  while (!(events = transport.incoming.take()).empty()) {
    for (auto& event : events) {
      if (event.kind == Kind::kRows) {
        answer(transport, transport.incoming.take_rows(event.number));
        continue;
      }
      const auto call = transport.find(event.number);
      if (!call) continue;
      if (event.kind == Kind::kMessage) {
        call->write(event.message, 0);
        call->settle(1, 0);
      } else if (event.kind == Kind::kHalfClose) {
        call->finish({}, {});
      } else if (event.kind == Kind::kOpen && call->context().method() == kStreamMethod) {
        call->open_lane(1 + event.number % 3, event.number, 4);
        call->settle(1, 0);
      } else if (event.kind == Kind::kOpen) {
        call->finish(event.message, {grpc::Status::OK, {{"key", "value"}}});
      }
    }
  }
}

// One stream: some messages, some answers, and any kind of end. False where an answer was wrong.
bool stream_once(grpc::GenericStub& stub, std::mt19937& random) {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, kStreamMethod, &queue);
  call->StartCall(reinterpret_cast<void*>(1));
  void* tag;
  bool ok = false;
  queue.Next(&tag, &ok);
  const int count = static_cast<int>(random() % 7);
  const bool reads = random() % 4 != 0;
  grpc::ByteBuffer in;
  for (int i = 0; ok && i < count; ++i) {
    const bool is_row = random() % 5 != 0;
    call->Write(buffer(is_row ? frame(static_cast<uint64_t>(i), "0123456789abcdef") : "not a row"),
                reinterpret_cast<void*>(2));
    queue.Next(&tag, &ok);
    if (!ok || !reads) continue;
    call->Read(&in, reinterpret_cast<void*>(3));
    queue.Next(&tag, &ok);
    if (ok && in.Length() == 0) return false;
  }
  const auto end = random() % 3;
  if (end == 0) context.TryCancel();
  if (end == 1 && ok) {
    call->WritesDone(reinterpret_cast<void*>(4));
    queue.Next(&tag, &ok);
    if (random() % 2) context.TryCancel();
  }
  if (end == 2) context.TryCancel();
  bool more = true;
  while (more) {
    call->Read(&in, reinterpret_cast<void*>(5));
    queue.Next(&tag, &more);
  }
  grpc::Status status;
  call->Finish(&status, reinterpret_cast<void*>(6));
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return status.ok() || status.error_code() == grpc::StatusCode::CANCELLED;
}

bool unary_once(grpc::GenericStub& stub, std::mt19937& random) {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto kind = random() % 4;
  const auto request = buffer(kind == 0   ? "no step"
                              : kind == 1 ? predict("0123456789abcdef")
                                          : step("0123456789abcdef"));
  const char* const method = kind == 1 ? kPredictMethod : kind == 2 ? "/none/Nothing" : kStepMethod;
  auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::ByteBuffer reply;
  grpc::Status status;
  call->Finish(&reply, &status, reinterpret_cast<void*>(1));
  if (random() % 4 == 0) context.TryCancel();
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) return status.error_message() == "no room";
  return status.ok() || status.error_code() == grpc::StatusCode::CANCELLED;
}

}  // namespace

int main(int argc, char** argv) {
  const long calls = argc > 1 ? std::atol(argv[1]) : 2000;
  const int threads = argc > 2 ? std::atoi(argv[2]) : 4;
  const unsigned seed = argc > 3 ? static_cast<unsigned>(std::atol(argv[3])) : 1;
  Transport transport(1 << 20, {});
  transport.add_method(kStepMethod, Style::kStep);
  transport.add_method(kPredictMethod, Style::kPredict);
  const int port = transport.listen("127.0.0.1:0", grpc::InsecureServerCredentials());
  if (!port) return 2;
  transport.start();
  // lanes 1 and 2 have bells, lane 3 and that of unary calls have none
  std::shared_ptr<Bell> bells[] = {std::make_shared<Bell>(), std::make_shared<Bell>()};
  std::atomic<bool> is_over{false};
  std::vector<std::thread> engines;
  for (uint64_t lane : {1, 2}) {
    transport.incoming.set_bell(lane, bells[lane - 1]);
    engines.emplace_back([&, lane] { run(transport, lane, *bells[lane - 1], is_over); });
  }
  std::thread server([&] { serve(transport); });
  const std::string address = "127.0.0.1:" + std::to_string(port);
  std::atomic<long> left{calls}, wrong{0};
  std::atomic<size_t> warm{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < threads; ++i) {
    callers.emplace_back([&, i] {
      std::mt19937 random(seed * 1000 + static_cast<unsigned>(i));
      grpc::ChannelArguments own;
      own.SetInt("caller", i);
      std::unique_ptr<grpc::GenericStub> stub;
      long made = 0;
      while (left.fetch_sub(1) > 0) {
        if (made++ % 5000 == 0) {  // a new connection now and then
          stub = std::make_unique<grpc::GenericStub>(
              grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), own));
        }
        if (!(random() % 4 ? stream_once(*stub, random) : unary_once(*stub, random))) ++wrong;
        if (left == calls * 3 / 4) warm = resident_bytes();
      }
    });
  }
  for (auto& each : callers) each.join();
  const auto grown = static_cast<double>(resident_bytes()) - static_cast<double>(warm);
  transport.shutdown(5.0);
  server.join();
  is_over = true;
  for (const auto& each : bells) each->ring();
  for (auto& each : engines) each.join();
  auto counters = transport.counters();
  std::printf("{\"calls\": %ld, \"wrong\": %ld, \"live\": %lu, \"rows\": %lu, \"grown_bytes\": %.0f}\n", calls,
              wrong.load(), counters["live_calls"], counters["rows"], warm ? grown : 0.0);
  return wrong == 0 && counters["live_calls"] == 0 ? 0 : 1;
}
