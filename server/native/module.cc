// The transport for Python: batches in and out with the interpreter's lock taken once for each.
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "transport.h"

namespace py = pybind11;
using namespace cellar;

namespace pybind11::detail {

// A message is bytes in Python; none is None.
template <>
struct type_caster<grpc::ByteBuffer> {
  PYBIND11_TYPE_CASTER(grpc::ByteBuffer, const_name("bytes"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!PyBytes_Check(source.ptr())) return false;
    grpc::Slice slice(PyBytes_AS_STRING(source.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(source.ptr())));
    value = grpc::ByteBuffer(&slice, 1);
    return true;
  }

  static handle cast(const grpc::ByteBuffer& buffer, return_value_policy, handle) {
    grpc::Slice slice;
    if (!buffer.Valid()) return none().release();
    if (!buffer.TrySingleSlice(&slice).ok() && !buffer.DumpToSingleSlice(&slice).ok()) throw std::bad_alloc();
    return bytes(reinterpret_cast<const char*>(slice.begin()), slice.size()).release();
  }
};

}  // namespace pybind11::detail

namespace {

// TLS certificates that can be replaced while the server runs: gRPC asks for them at each handshake.
class Certificates : public grpc::ServerCredentials {
 public:
  Certificates(const std::string& chain, const std::string& key, const std::string& client_ca)
      : asks_callers_(!client_ca.empty()) {
    replace(chain, key, client_ca);
  }

  // client_ca: authorities of callers; empty: callers need no certificate.
  void replace(const std::string& chain, const std::string& key, const std::string& client_ca) {
    const grpc_ssl_pem_key_cert_pair pair = {key.c_str(), chain.c_str()};
    // gRPC 1.51 ends the process where there is none, though without it no caller is asked for a certificate
    const std::string& ca = client_ca.empty() ? chain : client_ca;
    std::lock_guard guard(lock_);
    fresh_.reset(grpc_ssl_server_certificate_config_create(ca.c_str(), &pair, 1));
  }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    const auto asked = asks_callers_ ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                     : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    auto* options = grpc_ssl_server_credentials_create_options_using_config_fetcher(asked, &Certificates::fetch, this);
    grpc_server_credentials* made = grpc_ssl_server_credentials_create_with_options(options);
    const int port = grpc_server_add_http2_port(server, address.c_str(), made);
    grpc_server_credentials_release(made);
    return port;
  }

  // On gRPC's threads, which own the config from then on.
  static grpc_ssl_certificate_config_reload_status fetch(void* self, grpc_ssl_server_certificate_config** config) {
    auto* certificates = static_cast<Certificates*>(self);
    std::lock_guard guard(certificates->lock_);
    if (!certificates->fresh_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    *config = certificates->fresh_.release();
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const bool asks_callers_;
  std::mutex lock_;
  // what gRPC does not have yet
  std::unique_ptr<grpc_ssl_server_certificate_config, decltype(&grpc_ssl_server_certificate_config_destroy)> fresh_{
      nullptr, grpc_ssl_server_certificate_config_destroy};
};

template <typename Pair>
py::tuple pair_of(const Pair& pair) {
  const auto& [key, value] = pair;
  return py::make_tuple(py::str(key.data(), key.size()), py::bytes(value.data(), value.size()));
}

// (kind, number, ok, message, about); of a call that opens, about: (method, peer, deadline_s, metadata, identity), the
// last of which is what TLS proved of the peer.
py::tuple event_of(const Event& event) {
  py::object about = py::none();
  if (event.call) {
    const auto& context = event.call->context();
    py::list metadata, identity;
    for (const auto& each : context.client_metadata()) metadata.append(pair_of(each));
    const auto proved = context.auth_context();
    for (auto at = proved->begin(); at != proved->end(); ++at) identity.append(pair_of(*at));
    about = py::make_tuple(context.method(), context.peer(), event.call->deadline_s(), metadata, identity);
  }
  return py::make_tuple(int(event.kind), event.number, event.ok, event.message, about);
}

py::list take(Transport& transport) {
  std::vector<Event> events;
  {
    py::gil_scoped_release released;
    events = transport.incoming.take();
  }
  py::list made;
  for (const auto& each : events) made.append(event_of(each));
  return made;
}

// (style, rest, caller, numbers int64 [n, 8], deadline_s float64 [n] or None, ids, data uint8 [bytes]); the arrays are
// the rows' own.
py::tuple rows_of(Rows&& rows) {
  auto* kept = new Rows(std::move(rows));
  const py::capsule owner(kept, [](void* held) { delete static_cast<Rows*>(held); });
  const size_t n = kept->numbers.size();
  const std::vector<py::bytes> ids(kept->ids.begin(), kept->ids.end());
  py::object deadline_s = py::none();
  if (kept->is_timed) deadline_s = py::array_t<double>(n, kept->deadline_s.data(), owner);
  return py::make_tuple(
      int(kept->style), py::bytes(kept->rest), py::bytes(kept->caller),
      py::array_t<int64_t>({n, size_t{8}}, reinterpret_cast<const int64_t*>(kept->numbers.data()), owner), deadline_s,
      ids, py::array_t<uint8_t>(kept->data.size(), reinterpret_cast<const uint8_t*>(kept->data.data()), owner));
}

py::list take_rows(Transport& transport, uint64_t lane) {
  py::list made;
  for (auto& each : transport.incoming.take_rows(lane)) made.append(rows_of(std::move(each)));
  return made;
}

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// columns: calls, frame_ids, handles, starts, positions, lengths and, where a store keeps them, durable: whole numbers
// of 64 bits [n] each. outputs: the emissions of all rows; none, with an error, where all have that. end: how unary
// calls end, where they have no message.
void send(Transport& transport, const std::vector<py::array>& columns, const Array<float>& outputs,
          const std::string& error, const std::shared_ptr<End>& end) {
  Answers answers;
  Answers::Column* const places[] = {&answers.call,     &answers.frame_id, &answers.handle, &answers.start,
                                     &answers.position, &answers.length,   &answers.durable};
  if (columns.size() < 6 || columns.size() > 7) throw py::value_error("there are six columns, or seven");
  for (size_t i = 0; i < columns.size(); ++i) {
    const bool is_whole = py::isinstance<Array<uint64_t>>(columns[i]) || py::isinstance<Array<int64_t>>(columns[i]);
    if (!is_whole || columns[i].size() != columns[0].size()) throw py::value_error("the columns are not alike");
    const auto* at = static_cast<const uint64_t*>(columns[i].data());
    places[i]->assign(at, at + columns[i].size());
  }
  answers.error = error;
  answers.emission_bytes = sizeof(float);
  for (py::ssize_t i = 1; i < outputs.ndim(); ++i) {
    answers.emission_bytes *= static_cast<size_t>(outputs.shape(i));
    append_varint(&answers.axes, static_cast<uint64_t>(outputs.shape(i)));
  }
  size_t total = 0;
  for (const uint64_t length : answers.length) {
    answers.offset.push_back(total);
    total += length * answers.emission_bytes;
  }
  if (total != static_cast<size_t>(outputs.nbytes())) throw py::value_error("the outputs are not what the lengths say");
  py::gil_scoped_release released;
  answers.outputs.assign(reinterpret_cast<const char*>(outputs.data()), total);
  transport.send(std::move(answers), end);
}

// A method of the call with a number; nothing where it is over.
template <typename Result, typename... Args>
auto on_call(Result (Call::*method)(Args...)) {
  return [method](Transport& transport, uint64_t number, Args... args) {
    const auto call = transport.find(number);
    return call ? (*call.*method)(args...) : Result();
  };
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  using released = py::call_guard<py::gil_scoped_release>;
  module.attr("sources") = CELLAR_SOURCES;
  py::class_<grpc::ServerCredentials, std::shared_ptr<grpc::ServerCredentials>>(module, "ServerCredentials");
  py::class_<Certificates, grpc::ServerCredentials, std::shared_ptr<Certificates>>(module, "Certificates")
      .def(py::init<std::string, std::string, std::string>())
      .def("replace", &Certificates::replace);
  module.def("insecure", &grpc::InsecureServerCredentials);
  py::class_<Bell, std::shared_ptr<Bell>>(module, "Bell")
      .def(py::init())
      .def("ring", &Bell::ring)
      .def("wait", &Bell::wait, released());
  py::class_<End, std::shared_ptr<End>>(module, "End")
      .def(py::init([](int code, const std::string& text, decltype(End::trailing) trailing) {
        return End{grpc::Status(grpc::StatusCode(code), text), std::move(trailing)};
      }));
  py::class_<Transport>(module, "Transport")
      .def(py::init<int, std::vector<std::pair<std::string, int>>>())
      .def("add_method", [](Transport& t, const std::string& path, int style) { t.add_method(path, Style(style)); })
      .def("set_caller_header", &Transport::set_caller_header)
      .def("listen", &Transport::listen, released())
      .def("start", &Transport::start, released())
      .def("shutdown", &Transport::shutdown, released())
      .def("take", &take)
      .def("set_bell", [](Transport& t, uint64_t lane, std::shared_ptr<Bell> bell) { t.incoming.set_bell(lane, bell); })
      .def("take_rows", &take_rows)
      .def("send", &send)
      .def("counters", &Transport::counters)
      .def("open_lane", on_call(&Call::open_lane), released())
      .def("hand_back", on_call(&Call::hand_back), released())
      .def("read_ahead", on_call(&Call::read_ahead), released())
      .def("settle", on_call(&Call::settle), released())
      .def("read", on_call(&Call::read), released())
      .def("write", on_call(&Call::write), released())
      .def("finish", on_call(&Call::finish), released());
}
