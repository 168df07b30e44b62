"""What a session remembers, and that nothing is computed twice."""

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_proto.v1 import inference_pb2 as pb

from benchmarks import samples


def flat(values) -> np.ndarray:
    return np.asarray(values).reshape(-1)


def close_to(whole: np.ndarray) -> dict[str, float]:
    return {"rtol": 0, "atol": 1e-5 * float(np.abs(whole).max())}


def test_step_by_step_and_chunk_by_chunk_equal_the_whole_and_every_step_runs_once(client, wire):
    hours = samples.hours()[:100]
    whole = flat(client.predict("forecast", hours))
    before = wire.counters("forecast")
    with client.session("forecast") as session:
        steps = np.concatenate([flat(session.step(hour)) for hour in hours])
        assert session.position == 100
    with client.session("forecast") as session:
        chunks = np.concatenate([flat(session.step(hours[at : at + 7])) for at in range(0, 100, 7)])
    after = wire.counters("forecast")
    np.testing.assert_allclose(steps, whole, **close_to(whole))
    np.testing.assert_allclose(chunks, whole, **close_to(whole))
    assert after.steps - before.steps == 200
    assert after.padded_steps == 0


def test_text_word_by_word_equals_the_whole_text(client):
    text = samples.sentences()[3]["text"]
    whole = np.asarray(client.predict("sentiment", text)).reshape(-1, 2)[-1]
    last = None
    with client.session("sentiment") as session:
        for word in text.split():
            answer = np.asarray(session.step(word + " ")).reshape(-1, 2)
            last = answer[-1] if len(answer) else last
    np.testing.assert_allclose(last, whole, atol=1e-5)


def test_a_fork_has_a_future_of_its_own(client):
    hours = samples.hours()
    path = np.concatenate([hours[:20], hours[700:710]])
    with client.session("forecast") as session:
        session.step(hours[:20])
        fork = session.fork()
        straight = flat(session.step(hours[20:30]))
        other = flat(fork.step(hours[700:710]))
        assert fork.id != session.id
        fork.close()
    whole, what_if = flat(client.predict("forecast", hours[:30])), flat(client.predict("forecast", path))
    np.testing.assert_allclose(straight, whole[20:], **close_to(whole))
    np.testing.assert_allclose(other, what_if[20:], **close_to(what_if))


def test_a_session_outlives_its_stream_and_its_client(client, server):
    hours = samples.hours()[:30]
    whole = flat(client.predict("forecast", hours))
    first = cellar_client.Client(server.address)
    session = first.session("forecast")
    parts = [flat(session.step(hours[:12]))]
    identity = session.id
    first.close()
    resumed = client.resume(identity)
    assert resumed.position == 12
    parts.append(flat(resumed.step(hours[12:])))
    resumed.close()
    np.testing.assert_allclose(np.concatenate(parts), whole, **close_to(whole))


def frame(opened: pb.OpenedSessions, position: int, hour: np.ndarray) -> pb.StreamRequest:
    sent = pb.Frame(frame_id=position + 2, handles=opened.handles, positions=[position])
    sent.inputs.data = hour.astype("<f4").tobytes()
    return pb.StreamRequest(frame=sent)


async def test_a_client_cut_off_in_mid_stream_can_ask_again_and_nothing_runs_twice(server, wire):
    hour = samples.hours()[0]
    before = wire.counters("forecast")
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = type(wire.inference)(channel)
        stream = stub.Stream()
        await stream.write(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model="forecast", ids=["cut-off"])))
        opened = (await stream.read()).opened
        await stream.write(frame(opened, 0, hour))
        answer = (await stream.read()).answer
        assert not answer.errors
        stream.cancel()
        again = stub.Stream()
        taken = pb.OpenSessions(frame_id=1, model="forecast", ids=["cut-off"], resume=True)
        await again.write(pb.StreamRequest(open=taken))
        opened = (await again.read()).opened
        assert list(opened.positions) == [1]
        await again.write(frame(opened, 0, hour))
        replayed = (await again.read()).answer
        assert replayed.outputs.data == answer.outputs.data
        await again.write(pb.StreamRequest(close=pb.CloseSessions(frame_id=9, handles=opened.handles)))
        await again.read()
        await again.done_writing()
    after = wire.counters("forecast")
    assert after.steps - before.steps == 1
    assert after.chunks_replayed - before.chunks_replayed == 1


async def test_a_reader_that_does_not_read_stops_nobody_else(server, wire):
    hours = samples.hours()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = type(wire.inference)(channel)
        slow, quick = stub.Stream(), stub.Stream()
        opened = {}
        for name, stream in (("slow", slow), ("quick", quick)):
            await stream.write(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model="forecast", count=1)))
            opened[name] = (await stream.read()).opened
        for position in range(3):
            await slow.write(frame(opened["slow"], position, hours[position]))
        for position in range(200):
            await quick.write(frame(opened["quick"], position, hours[position]))
            answer = (await quick.read()).answer
            assert not answer.errors
            assert list(answer.positions) == [position + 1]
        read = 0
        while read < 3:
            answer = (await slow.read()).answer
            assert not answer.errors
            read += len(answer.handles)
        slow.cancel()
        quick.cancel()


def test_an_unknown_session_is_a_typed_error(client):
    with pytest.raises(cellar_client.CellarError, match="ession"):
        client.resume("nobody-knows-me")
