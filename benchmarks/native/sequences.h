// Loads of sequences by the Open Inference Protocol: on streams (ModelStreamInfer) and by unary calls (ModelInfer).
#pragma once

#include "lane.h"

namespace oip {

// What a request says of its sequence.
enum Phase { START, MIDDLE, END };

// A parameter of a request; `choice` is the field of InferParameter: 1 bool, 2 int64.
inline void parameter(std::string& out, const std::string& key, int choice, uint64_t value) {
  std::string entry, held;
  wire::bytes(entry, 1, key);
  wire::number(held, choice, value);
  wire::bytes(entry, 2, held);
  wire::bytes(out, 4, entry);
}

// A request of `steps` steps of one sequence, all but its values: they follow as raw contents.
inline std::string head(const std::string& model, uint64_t id, uint64_t sequence, uint64_t steps, Phase phase) {
  std::string out, input, shape;
  wire::bytes(out, 1, model);
  wire::bytes(out, 3, std::to_string(id));
  parameter(out, "sequence_id", 2, sequence);
  if (phase == START) parameter(out, "sequence_start", 1, 1);
  if (phase == END) parameter(out, "sequence_end", 1, 1);
  for (uint64_t n : {uint64_t{1}, steps, uint64_t{64}}) wire::varint(shape, n);
  wire::bytes(input, 1, "x");
  wire::bytes(input, 2, "FP32");
  wire::bytes(input, 3, shape);
  wire::bytes(out, 5, input);
  wire::head(out, 7, "", steps * 64 * 4);
  return out;
}

}  // namespace oip

// Sequences that send one message after the other, the next when one is answered. A window is a whole sequence of each:
// its first message starts it, the one after the window's time ends it. A sequence that is refused sends no more in it.
class Sequences : public Load {
 public:
  Sequences(const Options& options, grpc::CompletionQueue* queue, size_t count) : Load(options, queue) {
    static uint64_t next = 1;
    for (size_t i = 0; i < count; ++i) sequences_.push_back({i, next++, oip::START, 0, values(steps_, i)});
  }

  void begin(const Options&) override {
    for (auto& each : sequences_) {
      each.phase = oip::START;
      send(each, window.begun);
    }
  }
  double send_due(double) override { return NEVER; }
  bool is_idle() const override { return in_flight_ == 0; }

 protected:
  struct Sequence {
    size_t number;
    uint64_t id;
    oip::Phase phase;
    double scheduled;
    std::string values;
  };

  virtual void post(Sequence& sequence) = 0;

  ByteBuffer request(const Sequence& sequence) const {
    auto head = oip::head(model_, sequence.number, sequence.id, steps_, sequence.phase);
    return wire::buffer(head, sequence.values.data(), sequence.values.size());
  }
  void answered(Sequence& sequence) {
    double at = now_s();
    --in_flight_;
    window.answered(sequence.scheduled, at, steps_);
    if (sequence.phase == oip::END) return;
    sequence.phase = is_over(at) ? oip::END : oip::MIDDLE;
    send(sequence, at);
  }
  void refused(const std::string& kind, const std::string& said) {
    --in_flight_;
    ++window.errors[kind];
    if (window.said.empty()) window.said = said;
  }

  std::vector<Sequence> sequences_;

 private:
  void send(Sequence& sequence, double at) {
    sequence.scheduled = at;
    ++in_flight_;
    ++window.sent;
    post(sequence);
  }
};

// A unary call a message.
class CalledSequences : public Sequences {
 public:
  CalledSequences(const Options& options, grpc::CompletionQueue* queue)
      : Sequences(options, queue, whole(options, "sessions", 1)) {
    for (auto& each : sequences_) calls_.push_back(std::make_unique<Call>(this, &each));
  }
  void cancel() override {
    for (auto& call : calls_)
      if (call->context) call->context->TryCancel();
  }
  bool is_gone() const override { return in_flight_ == 0; }

 private:
  struct Call {
    Call(CalledSequences* load, Sequence* sequence)
        : load(load), sequence(sequence), on_answer(this, &Call::answered) {}

    void send() {
      reader.reset();
      context = std::make_unique<grpc::ClientContext>();
      reader = load->stub(sequence->number)
                   .PrepareUnaryCall(context.get(), "/inference.GRPCInferenceService/ModelInfer",
                                     load->request(*sequence), load->queue);
      reader->StartCall();
      reader->Finish(&response, &status, &on_answer);
    }
    void answered(bool) {
      if (status.ok()) return load->answered(*sequence);
      load->refused("grpc-" + std::to_string(status.error_code()), status.error_message());
    }

    CalledSequences* load;
    Sequence* sequence;
    Hook<Call> on_answer;
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<ByteBuffer>> reader;
    ByteBuffer response;
    grpc::Status status;
  };

  void post(Sequence& sequence) override { calls_[sequence.number]->send(); }

  std::vector<std::unique_ptr<Call>> calls_;
};

// `streams` streams of `sessions` sequences each, a message a sequence.
class StreamedSequences : public Sequences {
 public:
  StreamedSequences(const Options& options, grpc::CompletionQueue* queue)
      : Sequences(options, queue, whole(options, "streams", 1) * whole(options, "sessions", 1)) {
    for (long i = 0; i < whole(options, "streams", 1); ++i) lanes_.push_back(std::make_unique<Stream>(this, i));
  }
  bool is_ready() const override {
    return std::all_of(lanes_.begin(), lanes_.end(), [](auto& lane) { return lane->is_open || lane->is_lost; });
  }
  void cancel() override {
    for (auto& lane : lanes_) lane->context.TryCancel();
  }
  // As callers end a stream whose answers they have: half-closed, not cancelled.
  void finish() override {
    if (!is_idle()) return cancel();
    for (auto& lane : lanes_)
      if (!lane->is_lost) lane->finish();
  }
  bool is_gone() const override {
    return std::all_of(lanes_.begin(), lanes_.end(), [](auto& lane) { return lane->num_pending == 0; });
  }

 private:
  struct Stream : Lane {
    Stream(StreamedSequences* load, size_t number)
        : Lane(load->stub(number), "/inference.GRPCInferenceService/ModelStreamInfer", load->queue), load(load) {
      start();
    }

    void opened() override { is_open = true; }
    void add(Sequence& sequence) {
      waiting.push_back(&sequence);
      is_lost ? lost() : pump();
    }
    void pump() override {
      if (is_writing() || waiting.empty()) return;
      Sequence* sequence = waiting.front();
      waiting.pop_front();
      sent.insert(sequence);
      write(load->request(*sequence));
    }
    // ModelStreamInferResponse: 1 error_message, 2 infer_response, of which 3 is the request's id
    void received(const wire::Field& message) override {
      wire::Field field, part;
      std::string error, id;
      for (wire::Reader reader(message); reader.next(field);) {
        if (field.number == 1) error = text(field);
        if (field.number != 2) continue;
        for (wire::Reader response(field); response.next(part);)
          if (part.number == 3) id = text(part);
      }
      if (id.empty()) throw std::runtime_error("an answer without an id: " + error);
      Sequence& sequence = load->sequences_[std::stoul(id)];
      sent.erase(&sequence);
      error.empty() ? load->answered(sequence) : load->refused("refused", error);
    }
    static std::string text(const wire::Field& field) {
      return std::string(reinterpret_cast<const char*>(field.data), field.size);
    }
    // The server is gone, or the load is closed: nothing more is sent on it.
    void lost() override {
      is_lost = true;
      for (size_t n = sent.size() + waiting.size(); n; --n) load->refused("lost", "a stream ended");
      sent.clear();
      waiting.clear();
    }

    StreamedSequences* load;
    std::deque<Sequence*> waiting;
    std::set<Sequence*> sent;
    bool is_open = false, is_lost = false;
  };

  void post(Sequence& sequence) override { lanes_[sequence.number % lanes_.size()]->add(sequence); }

  std::vector<std::unique_ptr<Stream>> lanes_;
};
