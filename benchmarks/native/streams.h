// Loads on streams of sessions.
#pragma once

#include "lane.h"

// Streams of sessions: frames of `steps` steps a session, `depth` of them in flight, the next when one is answered or,
// with period_s, when it is due. As churn: sessions are opened and closed, over and over.
class Streams : public Load {
 public:
  Streams(const Options& options, grpc::CompletionQueue* queue) : Load(options, queue) {
    long num_streams = whole(options, "streams", 1);
    for (long i = 0; i < num_streams; ++i) lanes_.push_back(std::make_unique<Stream>(this, i));
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

  struct Stream : Lane {
    Stream(Streams* load, size_t number)
        : Lane(load->stub(number), "/cellar.v1.Inference/Stream", load->queue), load(load),
          values(Load::values(load->num_sessions_ * load->steps_, number)) {}

    void opened() override {
      if (load->is_churn_ || !load->opens_) {
        for (long i = 1; i <= load->num_sessions_; ++i) handles.push_back(i);
        load->opened();
      } else {
        write(wire::open_sessions(load->model_, load->num_sessions_, 1));
      }
    }

    void add(double scheduled) {
      due.push_back(scheduled);
      ++load->in_flight_;
      pump();
    }

    void pump() override {
      if (is_writing() || due.empty() || static_cast<long>(sent.size()) >= load->depth_) return;
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

    void received(const wire::Field& message) override {
      wire::Reader reader(message);
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

    void lost() override {
      if (load->is_closing_) return;
      throw std::runtime_error("a stream ended");
    }

    Streams* load;
    std::string values;
    std::vector<uint64_t> handles, ids;
    std::deque<double> due;
    std::deque<Sent> sent;
    uint64_t position = 0, next_id = 1;
  };

  void start_next() {
    if (started_ < lanes_.size()) lanes_[started_++]->start();
  }
  void opened() {
    ++opened_;
    start_next();
  }

  using Due = std::pair<double, Stream*>;
  std::priority_queue<Due, std::vector<Due>, std::greater<Due>> due_;
  std::vector<std::unique_ptr<Stream>> lanes_;
  const long depth_ = whole(options_, "depth", 1);
  const double period_s_ = real(options_, "period_s", 0);
  const bool is_churn_ = get(options_, "kind", "") == "churn";
  bool is_closing_ = false;
  size_t started_ = 0, opened_ = 0;
};
