// The transport for Python: batches in and out with the interpreter's lock taken once for each.
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "transport.h"

namespace py = pybind11;
using namespace cellar;

namespace {

// TLS certificates that can be replaced while the server runs: gRPC asks for them at each handshake.
class Certificates : public grpc::ServerCredentials {
 public:
  Certificates(std::string chain, std::string key, std::string client_ca, bool requires_client)
      : requires_client_(requires_client) {
    replace(std::move(chain), std::move(key), std::move(client_ca));
  }

  void replace(std::string chain, std::string key, std::string client_ca) {
    std::lock_guard guard(lock_);
    chain_ = std::move(chain);
    key_ = std::move(key);
    client_ca_ = std::move(client_ca);
    is_new_ = true;
  }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    const auto asked = requires_client_     ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                       : client_ca_.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                            : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
    auto* options = grpc_ssl_server_credentials_create_options_using_config_fetcher(asked, &Certificates::fetch, this);
    grpc_server_credentials* made = grpc_ssl_server_credentials_create_with_options(options);
    const int port = grpc_server_add_http2_port(server, address.c_str(), made);
    grpc_server_credentials_release(made);
    return port;
  }

  static grpc_ssl_certificate_config_reload_status fetch(void* self, grpc_ssl_server_certificate_config** config) {
    auto* certificates = static_cast<Certificates*>(self);
    std::lock_guard guard(certificates->lock_);
    if (!certificates->is_new_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {certificates->key_.c_str(), certificates->chain_.c_str()};
    // gRPC 1.51 ends the process where there is none, though without it no caller is asked for a certificate
    const char* ca = (certificates->client_ca_.empty() ? certificates->chain_ : certificates->client_ca_).c_str();
    *config = grpc_ssl_server_certificate_config_create(ca, &pair, 1);
    certificates->is_new_ = false;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const bool requires_client_;
  std::mutex lock_;
  std::string chain_, key_, client_ca_;
  bool is_new_ = false;
};

py::bytes bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return py::bytes();
  if (slices.size() == 1) return py::bytes(reinterpret_cast<const char*>(slices[0].begin()), slices[0].size());
  std::string joined;
  joined.reserve(buffer.Length());
  for (const auto& slice : slices) joined.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return py::bytes(joined);
}

grpc::ByteBuffer buffer_of(const py::bytes& message) {
  char* at;
  Py_ssize_t size;
  PyBytes_AsStringAndSize(message.ptr(), &at, &size);
  grpc::Slice slice(at, static_cast<size_t>(size));
  return grpc::ByteBuffer(&slice, 1);
}

py::list pairs_of(const Pairs& pairs) {
  py::list made;
  for (const auto& [key, value] : pairs) made.append(py::make_tuple(key, py::bytes(value)));
  return made;
}

py::tuple event_of(const Event& event) {
  if (event.kind == Kind::kOpen) {
    return py::make_tuple(int(event.kind), event.call, event.ok, bytes_of(event.message), event.method, event.peer,
                          pairs_of(event.metadata), pairs_of(event.identity), event.time_left_s);
  }
  if (event.kind == Kind::kMessage) return py::make_tuple(int(event.kind), event.call, true, bytes_of(event.message));
  return py::make_tuple(int(event.kind), event.call, event.ok, py::none());
}

// (style, rest, caller, numbers int64 [8, n], data uint8 [bytes], ids, deadline_s float64 [n] or None); the bytes change
// hands.
py::tuple rows_of(Rows& rows) {
  const size_t n = rows.numbers.size();
  py::array_t<int64_t> numbers({size_t{8}, n});
  int64_t* at = numbers.mutable_data();
  for (size_t column = 0; column < 8; ++column) {
    for (const auto& row : rows.numbers) *at++ = static_cast<int64_t>(row[column]);
  }
  auto* data = new std::string(std::move(rows.data));
  const py::capsule owner(data, [](void* held) { delete static_cast<std::string*>(held); });
  const py::array_t<uint8_t> bytes({static_cast<py::ssize_t>(data->size())}, {py::ssize_t{1}},
                                   reinterpret_cast<uint8_t*>(data->data()), owner);
  py::list ids;
  for (const auto& id : rows.ids) ids.append(py::bytes(id));
  py::object deadline = py::none();
  if (rows.is_timed) deadline = py::array_t<double>(static_cast<py::ssize_t>(n), rows.deadline_s.data());
  return py::make_tuple(int(rows.style), py::bytes(rows.rest), py::bytes(rows.caller), numbers, bytes, ids, deadline);
}

py::object take(Transport& transport) {
  std::vector<Event> events;
  bool is_open;
  {
    py::gil_scoped_release released;
    is_open = transport.take(&events);
  }
  if (!is_open) return py::none();
  py::list made;
  for (const auto& each : events) made.append(event_of(each));
  return made;
}

py::list take_rows(Transport& transport, uint64_t lane) {
  py::list made;
  for (auto& each : transport.take_rows(lane)) made.append(rows_of(each));
  return made;
}

template <typename T>
using Column = py::array_t<T, py::array::c_style>;

// The columns of rows and, of those that were answered, their emissions; else what every row's Error is. `code`,
// `text`, `trailing`: how unary calls end, where they end with that.
void send(Transport& transport, const Column<uint64_t>& calls, const Column<uint64_t>& frame_ids,
          const Column<uint64_t>& handles, const Column<int64_t>& starts, const Column<int64_t>& positions,
          const Column<int64_t>& lengths, const Column<float>& outputs, const std::vector<uint64_t>& axes,
          const std::optional<Column<int64_t>>& durable, const std::string& error, int code, const std::string& text,
          const std::vector<std::pair<std::string, py::bytes>>& trailing) {
  const auto count = static_cast<size_t>(calls.size());
  const auto copied = [count](const auto& column) {
    if (static_cast<size_t>(column.size()) != count) throw py::value_error("the columns are not of one length");
    return std::vector(column.data(), column.data() + count);
  };
  Answers answers;
  answers.call = copied(calls);
  answers.frame_id = copied(frame_ids);
  answers.handle = copied(handles);
  answers.start = copied(starts);
  answers.position = copied(positions);
  answers.length = copied(lengths);
  if (durable) answers.durable = copied(*durable);
  answers.error = error;
  answers.emission_bytes = sizeof(float);
  for (const uint64_t axis : axes) {
    answers.emission_bytes *= axis;
    append_varint(&answers.axes, axis);
  }
  size_t total = 0;
  for (const int64_t length : answers.length) {
    answers.offset.push_back(total);
    total += static_cast<size_t>(length) * answers.emission_bytes;
  }
  if (total != static_cast<size_t>(outputs.nbytes())) throw py::value_error("the outputs are not what the lengths say");
  std::shared_ptr<End> end;
  if (code) end = std::make_shared<End>(End{{grpc::StatusCode(code), text}, Pairs(trailing.begin(), trailing.end())});
  py::gil_scoped_release released;
  answers.outputs.assign(reinterpret_cast<const char*>(outputs.data()), total);
  transport.send(std::move(answers), std::move(end));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  py::class_<grpc::ServerCredentials, std::shared_ptr<grpc::ServerCredentials>>(module, "ServerCredentials");
  py::class_<Certificates, grpc::ServerCredentials, std::shared_ptr<Certificates>>(module, "Certificates")
      .def(py::init<std::string, std::string, std::string, bool>(), py::arg("chain"), py::arg("key"),
           py::arg("client_ca"), py::arg("requires_client"))
      .def("replace", &Certificates::replace);
  module.def("insecure", &grpc::InsecureServerCredentials);
  using released = py::call_guard<py::gil_scoped_release>;
  py::class_<Bell, std::shared_ptr<Bell>>(module, "Bell")
      .def(py::init())
      .def("ring", &Bell::ring)
      .def("wait", &Bell::wait, released());
  py::class_<Transport>(module, "Transport")
      .def(py::init<int, std::vector<std::pair<std::string, int>>>(), py::arg("max_receive_bytes"), py::arg("options"))
      .def("add_method", [](Transport& t, const std::string& path, int style) { t.add_method(path, Style(style)); })
      .def("set_caller_header", &Transport::set_caller_header)
      .def("listen", &Transport::listen, released())
      .def("start", &Transport::start, released())
      .def("take", &take)
      .def("set_bell", &Transport::set_bell)
      .def("take_rows", &take_rows)
      .def("open_lane", &Transport::open_lane, released())
      .def("hand_back",
           [](Transport& t, uint64_t call, const py::bytes& message) {
             const auto buffer = buffer_of(message);
             py::gil_scoped_release unlocked;
             t.hand_back(call, buffer);
           })
      .def("settle", &Transport::settle, released())
      .def("read", &Transport::read, released())
      .def("write",
           [](Transport& t, uint64_t call, const py::bytes& message, int rows, bool notify) {
             const auto buffer = buffer_of(message);
             py::gil_scoped_release unlocked;
             return t.write(call, buffer, rows, notify);
           })
      .def("finish",
           [](Transport& t, uint64_t call, const std::optional<py::bytes>& message, int code, const std::string& text,
              const std::vector<std::pair<std::string, py::bytes>>& trailing) {
             grpc::ByteBuffer buffer;
             if (message) buffer = buffer_of(*message);
             Pairs pairs(trailing.begin(), trailing.end());
             const bool has_message = message.has_value();
             py::gil_scoped_release unlocked;
             t.finish(call, has_message ? &buffer : nullptr, grpc::Status(grpc::StatusCode(code), text), pairs);
           })
      .def("cancel", &Transport::cancel, released())
      .def("send", &send, py::arg("calls").noconvert(), py::arg("frame_ids").noconvert(),
           py::arg("handles").noconvert(), py::arg("starts").noconvert(), py::arg("positions").noconvert(),
           py::arg("lengths").noconvert(), py::arg("outputs").noconvert(), py::arg("axes"), py::arg("durable"),
           py::arg("error") = "", py::arg("code") = 0, py::arg("text") = "",
           py::arg("trailing") = std::vector<std::pair<std::string, py::bytes>>())
      .def("shutdown", &Transport::shutdown, released())
      .def("counters", [](Transport& t) {
        const Counters c = t.counters();
        return py::dict(py::arg("calls") = c.calls, py::arg("live_calls") = c.live_calls,
                        py::arg("messages") = c.messages, py::arg("rows") = c.rows, py::arg("writes") = c.writes);
      });
}
