"""Tables of limits, meters that hold callers to them, and queues that refuse in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import from_args
from cellar_server.errors import CellarError
from cellar_server.front.rations import Rations
from cellar_server.front.readiness import LOOKS_OFF, LOOKS_ON, Readiness
from cellar_server.limits import Limits, LimitTable
from cellar_server.runtime.base import StartupError
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.directory import SCOPE_END, scoped
from cellar_server.sessions.messages import (
    FrameReply,
    FrameRequest,
    GenerateRequest,
    PredictReply,
    PredictRequest,
    StepRequest,
)
from cellar_server.sessions.quota import Quota
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench, Clock, reason_of
from tests.fakes.runtime import CounterGenerator, CounterRuntime, counter_model, generator_model

ALICE = "alice" + SCOPE_END


# -- the table -------------------------------------------------------------------------------------------------------


def read(folder: Path, text: str) -> LimitTable:
    (folder / "cellar.toml").write_text(text)
    config = from_args(["--config", str(folder / "cellar.toml")], {})
    return LimitTable(config.caller_limits, config.model_limits)


def test_a_table_is_read_and_the_named_are_stronger_than_patterns(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        '[caller_limits."*"]\nmax_sessions = 5\n[caller_limits.alice]\nmax_steps_per_s = 10\n'
        '[caller_limits."al*"]\nmax_sessions = 6\n[model_limits.describe]\nmax_generation_steps = 7\n',
    )
    assert table.of_caller("bob") == table.of_caller("") == table.of_caller("alan") == Limits(max_sessions=5)
    assert table.of_caller("alice") == Limits(max_steps_per_s=10)
    assert table.of_model("describe").max_generation_steps == 7
    assert table.of_model("other") == Limits()
    assert table.limits_sessions
    assert not table.of_caller("bob").is_metered
    assert table.of_caller("alice").is_metered
    assert read(tmp_path, "") == LimitTable()
    assert not LimitTable().limits_sessions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[caller_limits.a]\nmax_session = 1", "no option 'max_session'; did you mean 'max_sessions'"),
        ("[caller_limit.a]\nmax_sessions = 1", "no option 'caller_limit'; did you mean 'caller_limits'"),
        ("caller_limits = 1", "these are tables"),
        ("model_limits.x = 1", "this is a table"),
        ("[caller_limits.a]\nmax_sessions = -1", "max_sessions"),
        ("[caller_limits.a]\nmax_sessions = true", "max_sessions"),
        ("[model_limits.a]\nmax_sessions = 1.5", "max_sessions"),
        ('[caller_limits.a]\nmax_steps_per_s = "many"', "max_steps_per_s"),
        ("[caller_limits.a]\nmax_steps_per_s = nan", "max_steps_per_s"),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        read(tmp_path, text)


# -- meters ----------------------------------------------------------------------------------------------------------


def test_a_bucket_refuses_and_says_when_it_is_full_enough() -> None:
    clock = Clock()
    rations = Rations(LimitTable({"*": Limits(max_steps_per_s=10, burst_steps=20)}), clock)
    ration = rations.of(ALICE, "m")
    assert ration is not None
    assert ration.take(1, 20, 0) is None
    error = ration.take(1, 5, 0)
    assert error is not None
    assert reason_of(error) == "OVERLOADED"
    assert 500 <= error.retry_after_ms <= 502
    clock.now += error.retry_after_ms / 1000
    assert ration.take(1, 5, 0) is None
    # another caller has a bucket of its own
    other = rations.of("bob" + SCOPE_END, "m")
    assert other is not None
    assert other.take(1, 20, 0) is None


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 3)), min_size=1, max_size=60))
def test_no_caller_gets_more_than_its_rate_and_one_burst(chunks: list[tuple[int, float]]) -> None:
    clock = Clock()
    ration = Rations(LimitTable({"*": Limits(max_steps_per_s=10, burst_steps=20)}), clock).of("", "m")
    assert ration is not None
    taken = largest = 0
    for steps, pause in chunks:
        clock.now += pause
        error = ration.take(1, steps, 0)
        if error is None:
            taken += steps
            largest = max(largest, steps)
        else:
            clock.now += error.retry_after_ms / 1000
            assert ration.take(1, steps, 0) is None  # the delay is long enough
            taken += steps
            largest = max(largest, steps)
    # a chunk larger than the bucket goes when it is full, and what follows pays for it
    assert taken <= 10 * (clock.now - 1000) + 20 + largest + 1e-6


def test_chunks_in_flight_and_message_size() -> None:
    ration = Rations(LimitTable({"*": Limits(max_chunks_in_flight=4, max_message_bytes=100)}), Clock()).of("", "m")
    assert ration is not None
    assert ration.take(3, 3, 100) is None
    refused = [ration.take(2, 2, 10), ration.take(5, 5, 10), ration.take(1, 1, 101)]
    assert [reason_of(error) for error in refused] == ["OVERLOADED", "TOO_LARGE", "TOO_LARGE"]
    assert refused[0] is not None
    assert refused[0].retry_after_ms > 0
    ration.give_back(3)
    assert ration.take(4, 4, 10) is None


def test_a_models_limit_counts_all_its_callers_and_nothing_is_taken_by_a_refusal() -> None:
    rations = Rations(
        LimitTable({"*": Limits(max_chunks_in_flight=8)}, models={"m": Limits(max_chunks_in_flight=5)}), Clock()
    )
    alice, bob = rations.of(ALICE, "m"), rations.of("bob" + SCOPE_END, "m")
    assert alice is not None
    assert bob is not None
    assert alice.take(3, 3, 0) is None
    assert bob.take(3, 3, 0) is not None
    assert bob.take(2, 2, 0) is None
    bob.give_back(2)
    assert bob.take(2, 2, 0) is None
    other = rations.of(ALICE, "other")
    assert other is not None
    assert other.take(5, 5, 0) is None
    assert Rations(LimitTable(), Clock()).of(ALICE, "m") is None


def test_generations_are_as_long_as_the_least_limit_and_pay_for_what_they_emit() -> None:
    clock = Clock()
    table = LimitTable(
        {"*": Limits(max_generation_steps=9, max_steps_per_s=10)}, models={"m": Limits(max_generation_steps=5)}
    )
    ration = Rations(table, clock).of("", "m")
    assert ration is not None
    options = Options(0.0, 0, 0.0, 1, max_steps=50)
    assert ration.options(0, options).max_steps == 5
    with pytest.raises(CellarError, match="may ask for 9") as caught:
        ration.options(10, options)
    assert reason_of(caught.value) == "INVALID_SAMPLING"
    assert ration.take(1, 1, 0) is None
    ration.emit(29)
    error = ration.take(1, 1, 0)
    assert error is not None
    assert 2000 < error.retry_after_ms < 2200


# -- queues ----------------------------------------------------------------------------------------------------------


def busy(rows: int = 400, **config: object) -> tuple[Bench, list[int]]:
    """A bench whose queue holds so many one-step chunks of stream 1; ten more sessions of it wait."""
    bench = Bench(counter_model(), max_queue_rows=1000, max_sessions=2000, max_rows_per_run=10, **config)
    handles = bench.open(rows + 10)
    bench.send(handles[:rows], [0] * rows, [[1.0]] * rows)
    return bench, handles[rows:]


def frame_error(bench: Bench) -> CellarError:
    (reply,) = bench.sessions.take_replies()
    assert isinstance(reply, FrameReply)
    return reply.error


def test_a_chunk_that_would_wait_beyond_its_time_is_refused_at_once_with_a_delay() -> None:
    bench, idle = busy()
    wait_s = 401 * bench.sessions.core.pressure.s_per_row
    bench.send(idle[:1], [0], [[1.0]], timeouts_ms=[max(1, int(500 * wait_s))])
    error = frame_error(bench)
    assert reason_of(error) == "OVERLOADED"
    assert error.retry_after_ms > 0
    # with more time, or from a caller that has nothing ready, it is taken
    bench.send(idle[:1], [0], [[1.0]], timeouts_ms=[int(3000 * wait_s)])
    (other,) = bench.open(stream=2)
    bench.send([other], [0], [[1.0]], stream=2, timeouts_ms=[max(1, int(500 * wait_s))])
    bench.run(1)
    assert (other, 0) in bench.take()
    bench.run()
    assert bench.take()[idle[0], 0].tolist() == [1.0]


def test_what_is_expected_to_wait_is_measured() -> None:
    bench, _ = busy()
    before = bench.sessions.core.pressure.s_per_row
    for _ in range(40):
        bench.run(1)
        bench.clock.now += 0.5  # ten rows in half a second
    assert bench.sessions.core.pressure.s_per_row == pytest.approx(0.05, rel=0.1)
    assert before < 0.01


def test_a_frame_that_came_too_late_is_not_computed() -> None:
    bench = Bench(counter_model())
    (handle,) = bench.open()
    bench.sessions.take_replies()
    frame = Frame(handles=[handle], positions=[0], timeouts_ms=[50], inputs=Tensor(data=bytes(4)))
    bench.sessions.admit([FrameRequest("me", 1, frame, 1, arrived_s=bench.clock.now - 0.06)])
    assert reason_of(frame_error(bench)) == "DEADLINE_EXCEEDED"
    # its time counts from its arrival, not from when the engine came to it
    bench.sessions.admit([FrameRequest("me", 1, frame, 1, arrived_s=bench.clock.now - 0.04)])
    bench.clock.now += 0.02
    bench.run()
    assert reason_of(bench.take()[handle, 0]) == "DEADLINE_EXCEEDED"
    assert bench.sessions.core.counts.runs == 0


def test_new_sessions_and_bulk_work_are_refused_before_live_chunks() -> None:
    bench, idle = busy(max_wait_s=0.001)
    for new in (
        lambda: bench.sessions.open(["x"], stream=1),
        lambda: bench.sessions.open([], count=3, caller=1),
    ):
        with pytest.raises(CellarError) as caught:
            new()
        assert reason_of(caught.value) == "OVERLOADED"
        assert caught.value.retry_after_ms > 0
    bench.sessions.admit([StepRequest("me", "y", 0, [], bytes(4), 1, opens=True, caller=1)])
    assert reason_of(frame_error(bench)) == "OVERLOADED"
    bench.sessions.admit([PredictRequest("me", [1], 0, [], bytes(4), False, is_bulk=True, caller=1)])
    (reply,) = bench.sessions.take_replies()
    assert isinstance(reply, PredictReply)
    assert reason_of(reply.error) == "OVERLOADED"
    # live sessions go on, an open one is taken up again, and another caller is not refused for this one's flood
    bench.send(idle[:1], [0], [[1.0]])
    assert bench.sessions.take_replies() == []
    assert len(bench.open(stream=2)) == 1
    bench.run()
    assert len(bench.open()) == 1


def test_the_last_part_of_the_queue_is_for_live_sessions() -> None:
    bench, idle = busy(rows=751, max_wait_s=1e6)
    with pytest.raises(CellarError) as caught:
        bench.sessions.open(["x"], stream=2)
    assert reason_of(caught.value) == "OVERLOADED"
    assert bench.sessions.core.load >= 1
    bench.send(idle, [0] * len(idle), [[1.0]] * len(idle))
    bench.run()
    assert len(bench.take()) == 761
    assert bench.sessions.core.load == 0


def test_many_busy_callers_saturate_and_a_single_one_does_not() -> None:
    bench = Bench(counter_model(), max_queue_rows=4000, max_sessions=4000, max_rows_per_run=10, max_wait_s=0.001)
    bench.send(bench.open(100), [0] * 100, [[1.0]] * 100)
    assert bench.sessions.core.load < 1
    opened = {stream: bench.sessions.open([], count=100, stream=stream) for stream in (2, 3)}
    for stream, each in opened.items():
        bench.send([one.handle for one in each], [0] * 100, [[1.0]] * 100, stream=stream)  # type: ignore[union-attr]
    assert bench.sessions.core.load >= 1
    with pytest.raises(CellarError):
        bench.sessions.open(["x"], stream=4)


def test_a_generation_whose_time_is_over_is_not_primed() -> None:
    class Primed(CounterGenerator):
        primed = 0

        def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
            self.primed += 1
            return super().prime(condition, state)

    runtime = Primed()
    bench = Bench(generator_model(runtime))
    late = bench.clock.now - 0.001
    bench.sessions.admit([GenerateRequest("me", b"", bytes(4), Options(0.0, 0, 0.0, 1, max_steps=3), deadline_s=late)])
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == "DEADLINE_EXCEEDED"
    assert runtime.primed == 0


def test_chunks_by_id_and_whole_sequences_whose_time_is_over_are_not_run() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime))
    bench.sessions.open(["x"])
    late = bench.clock.now - 0.001
    bench.sessions.admit(
        [
            StepRequest("a", "x", 0, [], bytes(4), 1, deadline_s=late),
            PredictRequest("b", [1], 0, [], bytes(4), False, late),
        ]
    )
    bench.run()
    assert [reason_of(reply.error) for reply in bench.sessions.take_replies()] == ["DEADLINE_EXCEEDED"] * 2
    assert runtime.runs == []


# -- readiness -------------------------------------------------------------------------------------------------------


def test_readiness_goes_and_comes_back_without_flapping() -> None:
    readiness = Readiness()
    changes = [readiness.look(load) for load in [1.2] + [0.9] * 3 + [1.5] * LOOKS_OFF]
    assert changes == [False] * (3 + LOOKS_OFF) + [True]
    assert readiness.is_saturated
    assert [readiness.look(load) for load in (0.8, 0.2, 0.7, *[0.1] * LOOKS_ON)] == [False] * (2 + LOOKS_ON) + [True]
    assert not readiness.is_saturated


# -- sessions --------------------------------------------------------------------------------------------------------


def test_sessions_are_counted_however_they_come_and_go() -> None:
    bench = Bench(counter_model(), max_idle_s=10)
    quota = Quota(LimitTable({"*": Limits(max_sessions=3)}, models={"counter": Limits(max_sessions=5)}))
    bench.directory._quota = quota
    sessions = bench.sessions

    def open_for(caller: str, id: str) -> str:
        (opened,) = sessions.open([scoped(caller + SCOPE_END, id)])
        return reason_of(opened) if isinstance(opened, CellarError) else ""

    assert [open_for("alice", str(i)) for i in range(4)] == ["", "", "", "OVERLOADED"]
    with pytest.raises(CellarError, match="limit of 3"):
        sessions.fork(ALICE + "0", ALICE + "fork")
    assert [open_for("bob", str(i)) for i in range(3)] == ["", "", "OVERLOADED"]  # the model has its five
    sessions.close(ALICE + "0")
    sessions.fork(ALICE + "1", ALICE + "fork")
    assert open_for("alice", "another") == "OVERLOADED"
    sessions.close(ALICE + "fork")
    assert open_for("alice", "1") == "SESSION_EXISTS"
    state = sessions.export(ALICE + "1")
    sessions.import_state(state, ALICE + "copy")
    bench.clock.now += 11
    sessions.expire()
    assert open_for("alice", "new") == ""
    sessions.close_all(CellarError(Reason.SESSION_CLOSED, "unloaded"))
    assert not quota._callers
    assert not quota._models
