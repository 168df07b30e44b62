// Loads of calls that arrive by a schedule.
#pragma once

#include "load.h"

// Calls that arrive by a schedule, whole sequences (Predict) or generations (Generate), at most `limit` of them in flight.
// The schedule is a file of pairs of doubles: seconds after the window's begin, and steps.
class Arrivals : public Load {
 public:
  Arrivals(const Options& options, grpc::CompletionQueue* queue) : Load(options, queue) {
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
      if (load->timeout_ms_) {  // as callers say it: known to the server before it reads the message
        context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(load->timeout_ms_));
      }
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
  const long limit_ = whole(options_, "limit", 4096), timeout_ms_ = whole(options_, "timeout_ms", 0);
  const bool is_generating_ = get(options_, "kind", "") == "generate";
};
