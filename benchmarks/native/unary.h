// Loads of unary calls, a Step after the other.
#pragma once

#include "load.h"

// Sessions that send a unary Step each, the next when the last is answered.
class Unary : public Load {
 public:
  Unary(const Options& options, grpc::CompletionQueue* queue) : Load(options, queue) {
    for (long i = 0; i < num_sessions_; ++i) {
      callers_.push_back(std::make_unique<Caller>(this, i, get(options, "prefix", "unary-") + std::to_string(i)));
    }
    if (!opens_) opened_ = callers_.size();
    if (opens_)
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
  size_t opening_ = 0, opened_ = 0;
};
