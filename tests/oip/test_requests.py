"""Whole sequences, sequences and generations through tritonclient, beside the native API on the same server."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import cellar_client
import numpy as np
import pytest
import tritonclient.grpc as tritonclient
import tritonclient.grpc.aio as tritonclient_aio

from benchmarks import network, samples
from tests.oip.asking import ask, refusal, stream, tensor, text

PHRASE = "must specify the START flag"


# -- whole sequences -------------------------------------------------------------------------------------------------


def test_a_request_without_a_sequence_is_whole_sequences(triton: Any, native: cellar_client.Client) -> None:
    hours = samples.hours()[:60].reshape(3, 20, -1)
    whole = native.predict_many("forecast", list(hours))
    assert np.array_equal(ask(triton, "forecast", tensor(hours)), np.stack([np.asarray(w) for w in whole]))
    images, _ = samples.digits()
    labels = native.predict_many("digits", [image[None] for image in images[:9]])
    assert np.array_equal(ask(triton, "digits", tensor(images[:9])), np.stack([np.asarray(w) for w in labels]))
    reviews = [row["text"] for row in samples.sentences()[:7]]
    answers = native.predict_many("sentiment", reviews)
    assert np.array_equal(ask(triton, "sentiment", text(*reviews)), np.stack([np.asarray(w) for w in answers]))


def test_typed_contents_are_as_good_as_raw_ones(triton: Any) -> None:
    request = tritonclient.service_pb2.ModelInferRequest(model_name="counter", id="typed")
    given = request.inputs.add(name="x", datatype="FP32", shape=[1, 2, 2])
    given.contents.fp32_contents.extend([1, 2, 3, 4])
    answer = triton._client_stub.ModelInfer(request)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1, 2, 4, 6]
    assert (answer.id, answer.model_version, list(answer.outputs[0].shape)) == ("typed", "1", [1, 2, 2])
    request = tritonclient.service_pb2.ModelInferRequest(model_name="sentiment")
    given = request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    given.contents.bytes_contents.append(b"a gripping film")
    answer = triton._client_stub.ModelInfer(request)
    expected = ask(triton, "sentiment", text("a gripping film"))
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == expected.ravel().tolist()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (tensor(np.zeros((1, 2, 3))), ["SHAPE_MISMATCH", "'x' has shape [1, 2, 3]", "[-1, -1, 2]"]),
        (tensor(np.zeros((2, 2))), ["SHAPE_MISMATCH", "[2, 2]"]),
        (tensor(np.zeros((1, 2, 2), np.int64)), ["DTYPE_MISMATCH", "'x' is INT64", "FP32"]),
        (tensor(np.zeros((1, 2, 2)), "z"), ["INVALID_REQUEST", "one input, 'x'", "'z'"]),
        (tensor(np.full((1, 2, 2), np.nan)), ["NON_FINITE_INPUT"]),
        (tensor(np.zeros((1, 0, 2))), ["EMPTY_INPUT"]),
    ],
)
def test_bad_input_names_the_tensor_and_what_was_expected(triton: Any, given: Any, parts: list[str]) -> None:
    said = refusal(triton, "counter", given)
    assert said.startswith("StatusCode.INVALID_ARGUMENT")
    assert all(part in said for part in parts), said


def test_a_size_that_does_not_match_is_named_with_both_sizes(triton: Any) -> None:
    request = tritonclient.service_pb2.ModelInferRequest(model_name="counter", raw_input_contents=[bytes(20)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3, 2])
    with pytest.raises(Exception, match=r"'x' holds 20 bytes; FP32 of shape \[1, 3, 2\] is 24 bytes"):
        triton._client_stub.ModelInfer(request)
    for data, said in (
        (b"\x09\x00", "ends within the length"),
        (b"\x09\x00\x00\x00ab", "element of 9 bytes: 2 are there"),
    ):
        request = tritonclient.service_pb2.ModelInferRequest(model_name="sentiment", raw_input_contents=[data])
        request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        with pytest.raises(Exception, match=said):
            triton._client_stub.ModelInfer(request)


def test_unknown_models_outputs_and_parameters(triton: Any) -> None:
    given = tensor(np.zeros((1, 1, 2)))
    assert "NOT_FOUND MODEL_NOT_FOUND" in refusal(triton, "nothing", given)
    assert "MODEL_NOT_FOUND" in refusal(triton, "counter", given, model_version="7")
    assert "INVALID_REQUEST" in refusal(triton, "counter", given, model_version="new")
    assert "no output 'z'" in refusal(triton, "counter", given, outputs=[tritonclient.InferRequestedOutput("z")])
    classes = tritonclient.InferRequestedOutput("y", class_count=3)
    assert "UNSUPPORTED" in refusal(triton, "counter", given, outputs=[classes])
    assert "position is a whole number" in refusal(triton, "counter", given, parameters={"position": "x"})
    # what means nothing here is left alone
    assert ask(triton, "counter", given, parameters={"colour": "red"}).tolist() == [[[0, 0]]]


def test_several_rows_of_which_one_is_bad_are_refused_with_its_number(triton: Any) -> None:
    rows = np.zeros((3, 1, 2))
    rows[2] = np.inf
    assert "row 2: " in refusal(triton, "counter", tensor(rows))


# -- sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sequence", [7, "seven", "7", "a name that is no printable ASCII: \u043f\u0442\u0438\u0446\u0430"]
)
def test_a_sequence_keeps_its_state(triton: Any, native: cellar_client.Client, sequence: int | str) -> None:
    one = tensor([[[1.0, 2.0]]])
    assert ask(triton, "counter", one, sequence_id=sequence, sequence_start=True).tolist() == [[[1, 2]]]
    assert ask(triton, "counter", one, sequence_id=sequence).tolist() == [[[2, 4]]]
    two = tensor([[[1.0, 2.0], [3.0, 0.0]]])
    assert ask(triton, "counter", two, sequence_id=sequence).tolist() == [[[3, 6], [6, 6]]]
    assert any(session.position == 4 for session in native.sessions())
    assert ask(triton, "counter", one, sequence_id=sequence, sequence_end=True).tolist() == [[[7, 8]]]
    assert not [session for session in native.sessions() if session.id.startswith("oip:counter")]
    assert PHRASE in refusal(triton, "counter", one, sequence_id=sequence)


def test_a_sequence_of_one_request(triton: Any, native: cellar_client.Client) -> None:
    one = tensor([[[1.0, 2.0]]])
    for _ in range(3):
        answer = ask(triton, "counter", one, sequence_id=5, sequence_start=True, sequence_end=True)
        assert answer.tolist() == [[[1, 2]]]
    assert not [session for session in native.sessions() if session.id.startswith("oip:counter")]


def test_three_ways_to_get_it_wrong_have_three_reasons(triton: Any) -> None:
    one = tensor([[[1.0, 2.0]]])
    never = refusal(triton, "counter", one, sequence_id=100)
    assert never.startswith("StatusCode.NOT_FOUND SESSION_NOT_FOUND")
    ask(triton, "counter", one, sequence_id=101, sequence_start=True)
    twice = refusal(triton, "counter", one, sequence_id=101, sequence_start=True)
    assert twice.startswith("StatusCode.ALREADY_EXISTS SESSION_EXISTS")
    assert ask(triton, "counter", one, sequence_id=101, sequence_end=True).tolist() == [[[2, 4]]]
    ended = refusal(triton, "counter", one, sequence_id=101)
    assert ended.startswith("StatusCode.NOT_FOUND SESSION_CLOSED")
    assert all(PHRASE in said for said in (never, twice, ended))
    many = tensor(np.zeros((2, 1, 2)))
    assert "one row; this one has 2" in refusal(triton, "counter", many, sequence_id=102, sequence_start=True)
    # a first request that was refused began nothing
    bad = tensor([[[np.nan, 0.0]]])
    assert "NON_FINITE_INPUT" in refusal(triton, "counter", bad, sequence_id=103, sequence_start=True)
    assert ask(triton, "counter", one, sequence_id=103, sequence_start=True, sequence_end=True).tolist() == [[[1, 2]]]


def test_with_a_position_every_request_can_be_sent_again(triton: Any) -> None:
    one = tensor([[[1.0, 2.0]]])

    def send(position: int, **flags: bool) -> list[Any]:
        return ask(triton, "counter", one, sequence_id="again", parameters={"position": position}, **flags).tolist()

    for _ in range(2):
        assert send(0, sequence_start=True) == [[[1, 2]]]
    for _ in range(3):
        assert send(1) == [[[2, 4]]]
    assert "expects 2" in refusal(triton, "counter", one, sequence_id="again", parameters={"position": 9})
    other = tensor([[[9.0, 9.0]]])
    assert "POSITION_CONFLICT" in refusal(triton, "counter", other, sequence_id="again", parameters={"position": 1})
    for _ in range(3):
        assert send(2, sequence_end=True) == [[[3, 6]]]


def test_text_comes_in_pieces(triton: Any, native: cellar_client.Client) -> None:
    review = samples.sentences()[3]["text"]
    words = review.encode()
    pieces = [words[at : at + 5] for at in range(0, len(words), 5)]
    answers = []
    for i, piece in enumerate(pieces):
        given = tensor(np.array([[piece]], dtype=object), "text")
        flags = {"sequence_start": i == 0, "sequence_end": i == len(pieces) - 1}
        answers.append(ask(triton, "sentiment", given, sequence_id="review", **flags))
    # a piece that ends no word has no answer yet
    assert {answer.shape for answer in answers} == {(0, 2), (1, 2)}
    assert np.array_equal(answers[-1][0], np.asarray(native.predict("sentiment", review)))


def test_two_hundred_interleaved_sequences_equal_the_native_api_bit_for_bit(
    triton: Any, native: cellar_client.Client
) -> None:
    rng = np.random.default_rng(3)
    sequences = {
        (i if i % 2 else f"s{i}"): rng.standard_normal((rng.integers(1, 12), network.WIDTH), np.float32)
        for i in range(1, 201)
    }
    order = [(id, step) for id, rows in sequences.items() for step in range(len(rows))]
    order.sort(key=lambda pair: (pair[1], rng.random()))
    answers: dict[int | str, list[np.ndarray]] = defaultdict(list)
    with stream(triton) as opened:
        for number, (id, step) in enumerate(order):
            triton.async_stream_infer(
                network.NAME,
                [tensor(sequences[id][None, step : step + 1])],
                request_id=str(number),
                sequence_id=id,
                sequence_start=step == 0,
                sequence_end=step == len(sequences[id]) - 1,
            )
        for _ in order:
            result, error = opened.take()
            assert error is None
            response = result.get_response()
            assert response.parameters["triton_final_response"].bool_param
            id, step = order[int(response.id)]
            assert len(answers[id]) == step  # in their order
            answers[id].append(result.as_numpy("y")[0])
    for id, rows in sequences.items():
        with native.session(network.NAME) as session:
            expected = np.asarray(session.step(rows))
        assert np.array_equal(np.concatenate(answers[id]), expected)


async def test_the_asyncio_client(running_oip: Any) -> None:
    async with tritonclient_aio.InferenceServerClient(running_oip.address) as client:
        assert await client.is_server_ready()
        one = tensor([[[1.0, 2.0]]])
        answer = await client.infer("counter", [one], sequence_id=11, sequence_start=True)
        assert answer.as_numpy("y").tolist() == [[[1, 2]]]

        async def requests() -> Any:
            for i in range(5):
                yield {"model_name": "counter", "inputs": [one], "sequence_id": 11, "sequence_end": i == 4}

        seen = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            seen.append(result.as_numpy("y")[0, 0, 0])
        assert seen == [2, 3, 4, 5, 6]


def test_errors_on_a_stream_carry_id_and_reason_and_the_stream_goes_on(triton: Any) -> None:
    one = tensor([[[1.0, 2.0]]])
    with stream(triton) as opened:
        triton.async_stream_infer("counter", [one], request_id="a", sequence_id=21)
        triton.async_stream_infer("counter", [tensor(np.zeros((1, 1, 3)))], request_id="b")
        triton.async_stream_infer("nothing", [one], request_id="c")
        triton.async_stream_infer("counter", [one], request_id="d")
        replies = [opened.take() for _ in range(4)]
    errors = [error.message() for _, error in replies if error is not None]
    assert len(errors) == 3
    assert sum(PHRASE in error and "SESSION_NOT_FOUND" in error for error in errors) == 1
    (good,) = [result for result, error in replies if error is None]
    assert good.get_response().id == "d"


def test_errors_on_a_stream_are_told_apart_by_id(triton: Any) -> None:
    request = tritonclient.service_pb2.ModelInferRequest(model_name="nothing", id="mine")
    (answer,) = triton._client_stub.ModelStreamInfer(iter([request]))
    assert answer.error_message.startswith("MODEL_NOT_FOUND: ")
    assert answer.infer_response.id == "mine"
    assert answer.infer_response.parameters["reason"].string_param == "MODEL_NOT_FOUND"


def test_a_real_status_for_those_who_ask_for_it(triton: Any) -> None:
    with stream(triton, headers={"triton_grpc_error": "true"}) as opened:
        triton.async_stream_infer("nothing", [tensor([[[1.0, 2.0]]])])
        _, error = opened.take()
    assert error.status() == "StatusCode.NOT_FOUND"


def test_an_empty_stream_ends(triton: Any) -> None:
    assert list(triton._client_stub.ModelStreamInfer(iter([]))) == []


def test_timeouts_and_priorities_are_understood(triton: Any) -> None:
    one = tensor([[[1.0, 2.0]]])
    # microseconds; generous ones change nothing
    assert ask(triton, "counter", one, timeout=10_000_000, priority=1).tolist() == [[[1, 2]]]
    # behind others, also where the number comes as int64
    assert ask(triton, "counter", one, priority=7).tolist() == [[[1, 2]]]
    request = tritonclient.service_pb2.ModelInferRequest(model_name="counter")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1, 2]).contents.fp32_contents.extend([1, 2])
    request.parameters["priority"].int64_param = 2
    request.parameters["sequence_id"].uint64_param = 77
    request.parameters["sequence_start"].bool_param = request.parameters["sequence_end"].bool_param = True
    assert len(triton._client_stub.ModelInfer(request).raw_output_contents) == 1
    # a microsecond is over before 2 x 256 cells are run 2,000 times, or is seen to be
    long, short = (tensor(np.zeros((1, steps, network.WIDTH))) for steps in (2000, 1))
    for i in range(3):
        ask(triton, network.NAME, short, sequence_id=78 + i, sequence_start=True)
    with stream(triton) as opened:
        triton.async_stream_infer(network.NAME, [long], request_id="slow")
        for i in range(3):
            triton.async_stream_infer(network.NAME, [long], request_id=f"late{i}", sequence_id=78 + i, timeout=1)
        replies = [opened.take() for _ in range(4)]
    said = [error.message() for _, error in replies if error is not None]
    assert len(said) == 3
    assert all(each.startswith(("DEADLINE_EXCEEDED", "OVERLOADED")) for each in said), said
    for i in range(3):
        ask(triton, network.NAME, short, sequence_id=78 + i, sequence_end=True)


# -- generation ------------------------------------------------------------------------------------------------------


def generated(client: Any, *, asks: bool, **params: Any) -> tuple[str, list[bool], list[int]]:
    """Text, final flags and number of outputs of each response."""
    act = samples.acts()[0]
    said, finals, sizes = b"", [], []
    given = tritonclient.InferInput("text", [1], "BYTES")
    given.set_data_from_numpy(np.array([act.encode()], dtype=object))
    with stream(client) as opened:
        client.async_stream_infer("describe", [given], enable_empty_final_response=asks, parameters=params)
        while not finals or not finals[-1]:
            result, error = opened.take()
            assert error is None
            response = result.get_response()
            finals.append(response.parameters["triton_final_response"].bool_param)
            sizes.append(len(response.outputs))
            if response.outputs:
                said += result.as_numpy("text")[0]
    return said.decode(), finals, sizes


@pytest.mark.parametrize("asks", [False, True])
def test_a_generation_is_decoupled_and_the_same_as_the_native_one(
    triton: Any, native: cellar_client.Client, asks: bool
) -> None:
    tokens = list(native.generate("describe", samples.acts()[0], seed=7, temperature=0.8))
    # floats and numbers as strings: some load generators send nothing else
    said, finals, sizes = generated(triton, asks=asks, seed="7", temperature="0.8")
    assert said == "".join(token.text for token in tokens)
    assert finals == [False] * (len(tokens) if asks else len(tokens) - 1) + [True]
    assert sizes == [3] * len(tokens) + [0] * asks


def test_a_generation_in_one_answer(triton: Any, native: cellar_client.Client) -> None:
    tokens = list(native.generate("describe", samples.acts()[1], seed=3, temperature=1.0, max_steps=9))
    given = tritonclient.InferInput("text", [1], "BYTES")
    given.set_data_from_numpy(np.array([samples.acts()[1].encode()], dtype=object))
    result = triton.infer("describe", [given], parameters={"seed": 3, "temperature": 1.0, "max_tokens": 9})
    assert result.as_numpy("text")[0].decode() == "".join(token.text for token in tokens)
    assert result.as_numpy("ids").tolist() == [token.id for token in tokens]
    assert result.get_response().parameters["seed"].string_param == "3"
    assert "INVALID_SAMPLING" in refusal(triton, "describe", given, parameters={"temperature": "hot"})
    assert "INVALID_SAMPLING" in refusal(triton, "describe", given, parameters={"top_p": 7.0})
    assert "takes no sequence_id" in refusal(triton, "describe", given, sequence_id=3)
