"""What the protocol says of the server and its models, and that its messages are wire-compatible."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import cellar_client
import grpc
import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from cellar_server.front.oip import schema
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from benchmarks.serving import ROOT
from tests.oip.asking import ask, refusal, tensor


def test_every_field_is_that_of_the_public_interface() -> None:
    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    file = schema.POOL.FindFileByName("cellar_proto/oip/open_inference.proto")
    compared = 0

    def compare(ours: Any, other: Any) -> None:
        nonlocal compared
        for field in ours.fields:
            twin = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (twin.number, twin.type, twin.is_repeated), field
            compared += 1
        for nested in ours.nested_types:
            compare(nested, other.nested_types_by_name[nested.name])

    for name, ours in file.message_types_by_name.items():
        if name != "Unsupported":
            compare(ours, theirs[name])
    for name, ours in file.enum_types_by_name.items():
        twin = model_config_pb2.DESCRIPTOR.enum_types_by_name[name]
        assert [(v.name, v.number) for v in ours.values] == [(v.name, v.number) for v in twin.values]
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert {m.name for m in schema.SERVICE.methods} == {m.name for m in methods}
    assert compared > 100


def test_our_messages_are_not_in_the_default_pool() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("cellar_proto/oip/open_inference.proto")


def test_server_and_models_are_described(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert [triton.is_model_ready(name) for name in ("counter", "broken", "nothing")] == [True, False, False]
    assert "sequence" in triton.get_server_metadata().extensions
    described = triton.get_model_metadata("forecast")
    assert [(t.name, t.datatype, list(t.shape)) for t in described.inputs] == [("x", "FP32", [-1, -1, 14])]
    assert [(t.name, t.datatype, list(t.shape)) for t in described.outputs] == [("y", "FP32", [-1, -1, 1])]
    assert list(described.versions) == ["1"]
    text = triton.get_model_metadata("sentiment")
    assert [(t.name, t.datatype, list(t.shape)) for t in text.inputs] == [("text", "BYTES", [-1, 1])]
    assert [list(t.shape) for t in text.outputs] == [[-1, 2]]
    # it generates too; here it has the signature of its mode
    scored = triton.get_model_metadata("chars-en")
    assert [(t.name, t.datatype, list(t.shape)) for t in scored.inputs] == [("text", "BYTES", [-1, 1])]
    assert [list(t.shape) for t in scored.outputs] == [[-1, -1, 66]]
    with pytest.raises(InferenceServerException, match="MODEL_NOT_FOUND"):
        triton.get_model_metadata("nothing")
    with pytest.raises(InferenceServerException, match="MODEL_BROKEN"):
        triton.get_model_metadata("broken")


def test_the_configuration_says_how_sequences_are_batched(triton: Any) -> None:
    config = triton.get_model_config("forecast").config
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.sequence_batching.max_sequence_idle_microseconds == 900_000_000
    assert config.max_batch_size == 256
    (state,) = config.sequence_batching.state
    assert list(state.dims) == [128]
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", model_config_pb2.TYPE_FP32, [-1, 14])]
    assert not config.model_transaction_policy.decoupled
    generator = triton.get_model_config("describe").config
    assert generator.model_transaction_policy.decoupled
    assert generator.max_batch_size == 0
    assert [o.name for o in generator.output] == ["text", "ids", "log_probabilities"]


def test_statistics_count_what_happened(triton: Any) -> None:
    def stats() -> Any:
        return triton.get_inference_statistics("digits").model_stats[0]

    before = stats()
    ask(triton, "digits", tensor(np.zeros((5, 64))))
    ask(triton, "digits", tensor(np.zeros((1, 64))))
    refusal(triton, "digits", tensor(np.zeros((1, 63))))
    after = stats()
    assert after.inference_count - before.inference_count == 6
    assert after.execution_count - before.execution_count == 2
    counted = after.inference_stats
    assert counted.success.count - before.inference_stats.success.count == 2
    assert counted.fail.count - before.inference_stats.fail.count == 1
    assert counted.queue.count - before.inference_stats.queue.count == 6
    assert counted.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert counted.success.ns > before.inference_stats.success.ns
    assert after.last_inference > 1_700_000_000_000
    runs = {b.batch_size: b.compute_infer.count for b in after.batch_stats}
    was = {b.batch_size: b.compute_infer.count for b in before.batch_stats}
    assert (runs[5] - was.get(5, 0), runs[1] - was.get(1, 0)) == (1, 1)
    assert len(triton.get_inference_statistics().model_stats) == 7


def test_the_repository_lists_loads_and_unloads(triton: Any, native: cellar_client.Client) -> None:
    index = {m.name: (m.state, m.reason) for m in triton.get_model_repository_index().models}
    assert index["counter"] == ("READY", "")
    assert index["broken"][0] == "UNAVAILABLE"
    assert "not" in index["broken"][1] or index["broken"][1]
    one = tensor([[[1.0, 2.0]]])
    ask(triton, "counter", one, sequence_id=900, sequence_start=True)
    session = native.session("counter")
    triton.unload_model("counter")
    assert not triton.is_model_ready("counter")
    assert "MODEL_NOT_FOUND" in refusal(triton, "counter", one)
    with pytest.raises(cellar_client.CellarError):
        session.step([1.0, 2.0])
    assert not [each for each in native.sessions() if each.model == "counter"]
    triton.load_model("counter")
    assert triton.is_model_ready("counter")
    triton.load_model("counter")  # loaded already: nothing to do
    # the sequence ended with the model
    assert "must specify the START flag" in refusal(triton, "counter", one, sequence_id=900)
    assert ask(triton, "counter", one, sequence_id=900, sequence_start=True, sequence_end=True).tolist() == [[[1, 2]]]
    for verb, name in ((triton.load_model, "nothing"), (triton.unload_model, "nothing"), (triton.load_model, "broken")):
        with pytest.raises(InferenceServerException, match="MODEL_"):
            verb(name)
    with pytest.raises(InferenceServerException, match="send no parameters"):
        triton.load_model("counter", config="{}")


def test_what_is_not_there_says_so(triton: Any) -> None:
    for call in (
        triton.get_system_shared_memory_status,
        triton.get_cuda_shared_memory_status,
        triton.get_trace_settings,
        triton.get_log_settings,
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert "Cellar has no shared memory" in caught.value.message()
    given = tritonclient.InferInput("x", [1, 1, 2], "FP32")
    given.set_shared_memory("region", 8)
    assert "UNSUPPORTED" in refusal(triton, "counter", given)


def test_reflection_lists_both_pools(running_oip: Any) -> None:
    with grpc.insecure_channel(running_oip.address) as channel:
        stub = ServerReflectionStub(channel)
        asked = [
            ServerReflectionRequest(list_services=""),
            ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
            ServerReflectionRequest(file_containing_symbol="cellar.v1.Inference"),
            ServerReflectionRequest(file_containing_symbol="no.Such"),
        ]
        services, oip, native, missing = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in services.list_services_response.service}
    assert {"inference.GRPCInferenceService", "cellar.v1.Inference", "grpc.health.v1.Health"} <= names
    assert b"ModelInferRequest" in b"".join(oip.file_descriptor_response.file_descriptor_proto)
    assert b"StreamRequest" in b"".join(native.file_descriptor_response.file_descriptor_proto)
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_the_page_s_example_runs(running_oip: Any) -> None:
    page = (ROOT / "docs" / "open-inference-protocol.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("127.0.0.1:50051", running_oip.address)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\[\[.+\]\]\]\n", done.stdout)


def test_perf_analyzer_runs_sequences(running_oip: Any) -> None:
    program = shutil.which("perf_analyzer")
    if program is None:
        pytest.skip("perf_analyzer is not installed (its wheel needs glibc 2.38)")
    done = subprocess.run(
        [
            program,
            "-m",
            "forecast",
            "-u",
            running_oip.address,
            "-i",
            "grpc",
            "--shape",
            "x:1,14",
            "-p",
            "500",
            "-r",
            "3",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
