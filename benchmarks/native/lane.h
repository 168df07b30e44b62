// One bidirectional stream of a load.
#pragma once

#include "load.h"

// Written to one message at a time, read all the time. Nothing of it may go while `num_pending` is above 0.
class Lane {
 public:
  Lane(grpc::GenericStub& stub, const char* method, grpc::CompletionQueue* queue)
      : on_start_(this, &Lane::started), on_write_(this, &Lane::written), on_read_(this, &Lane::read) {
    call_ = stub.PrepareCall(&context, method, queue);
  }
  virtual ~Lane() = default;

  void start() {
    call_->StartCall(&on_start_);
    ++num_pending;
  }

  // Half-closes; the server ends the stream then. Not while a message is being written.
  void finish() {
    ++num_pending;
    call_->WritesDone(&on_write_);
  }

  grpc::ClientContext context;
  int num_pending = 0;

 protected:
  virtual void opened() = 0;
  virtual void received(const wire::Field& message) = 0;
  // Writes what waits, where nothing is being written.
  virtual void pump() = 0;
  virtual void lost() = 0;

  void write(const ByteBuffer& out) {
    is_writing_ = true;
    ++num_pending;
    call_->Write(out, &on_write_);
  }
  bool is_writing() const { return is_writing_; }

 private:
  void started(bool ok) {
    --num_pending;
    if (!ok) return lost();
    opened();
    next_read();
  }
  void written(bool ok) {
    --num_pending;
    is_writing_ = false;
    ok ? pump() : lost();
  }
  void read(bool ok) {
    --num_pending;
    if (!ok) return lost();
    grpc::Slice slice = wire::flat(message_);
    wire::Field whole;
    whole.data = slice.begin();
    whole.size = slice.size();
    received(whole);
    next_read();
  }
  void next_read() {
    call_->Read(&message_, &on_read_);
    ++num_pending;
  }

  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  Hook<Lane> on_start_, on_write_, on_read_;
  ByteBuffer message_;
  bool is_writing_ = false;
};
