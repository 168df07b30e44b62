"""Chunks of many sequences go to their engine together, and each one's outcome comes back to whoever asked for it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Priority
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.errors import CellarError
from cellar_server.front.oip.chunks import Chunk, Chunks
from cellar_server.sessions.messages import BY_SEQUENCE, AnswerReply, Rows, RowsRefused, RowsReply


class Engine:
    def __init__(self) -> None:
        self.posted: list[Rows] = []
        self.rings = 0
        self.is_over = False

    def ring(self) -> None:
        self.rings += 1

    def post(self, rows: Rows) -> None:
        self.posted.append(rows)


def chunk(id: str, values: list[float], **fields: Any) -> Chunk:
    return Chunk(id, np.array(values, np.float32).tobytes(), len(values), **fields)


def reply(chunks: Chunks, rows: Rows, lengths: list[int], outputs: list[float], errors: Any = ()) -> RowsReply:
    return RowsReply(
        chunks,
        rows.frame_id,  # type: ignore[arg-type]
        rows.handle,  # type: ignore[arg-type]
        rows.position,  # type: ignore[arg-type]
        rows.position,  # type: ignore[arg-type]
        np.array(lengths),  # type: ignore[arg-type]
        np.array(outputs, np.float32),
        list(errors),
        call=rows.call,
    )


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_waits_goes_as_rows_by_what_it_has_in_common() -> None:
    async def run() -> None:
        chunks, engine, other = Chunks(), Engine(), Engine()
        came: dict[str, Any] = {}
        loop = asyncio.get_running_loop()

        def post(to: Engine, one: Chunk) -> None:
            chunks.post(to, one, lambda outcome: came.__setitem__(one.id, outcome), loop)  # type: ignore[arg-type]

        post(engine, chunk("a", [1.0], caller=3))
        post(engine, chunk("b", [2.0, 3.0], position=7, deadline_s=5.0))
        post(engine, chunk("late", [4.0], is_bulk=True))
        post(other, chunk("c", [5.0]))
        assert (engine.rings, other.rings) == (3, 1)
        first, bulk = chunks.take(engine)  # type: ignore[arg-type]
        assert first.ids == ["a", "b"]
        assert (first.position.tolist(), first.length.tolist(), first.size.tolist()) == ([-1, 7], [1, 2], [4, 8])
        assert first.data.view(np.float32).tolist() == [1.0, 2.0, 3.0]
        assert first.deadline.tolist() == [np.inf, 5.0]  # type: ignore[union-attr]
        assert first.callers.tolist() == [3, 0]
        assert first.outlet == BY_SEQUENCE
        assert first.rest != bulk.rest
        assert (bulk.ids, list(bulk.frame.priorities)) == (["late"], [Priority.BULK])
        assert [rows.ids for rows in chunks.take(other)] == [["c"]]  # type: ignore[arg-type]
        assert chunks.take(engine) == []  # type: ignore[arg-type]
        chunks.send(reply(chunks, first, [1, 2], [10.0, 20.0, 30.0]))
        full = CellarError(Reason.OVERLOADED, "full")
        nothing = np.zeros(1, np.int64)
        chunks.refuse(RowsRefused(chunks, bulk.call, nothing, nothing, nothing, nothing, (), full))
        assert not came  # those of an event loop are told there
        await settled()
        assert {id: outcome.tolist() for id, outcome in came.items() if id != "late"} == {
            "a": [10.0],
            "b": [20.0, 30.0],
        }
        assert came["late"] is full
        # told twice, by an engine that died: the first word counts
        chunks.refuse(RowsRefused(chunks, first.call, nothing, nothing, nothing, nothing, (), full))
        await settled()
        assert came["a"].tolist() == [10.0]

    asyncio.run(run())


def test_outcomes_of_no_event_loop_are_told_at_once() -> None:
    chunks, engine, came = Chunks(), Engine(), list[Any]()
    chunks.post(engine, chunk("a", [1.0]), came.append)  # type: ignore[arg-type]
    (rows,) = chunks.take(engine)  # type: ignore[arg-type]
    chunks.send(reply(chunks, rows, [1], [10.0]))
    assert [outcome.tolist() for outcome in came] == [[10.0]]


def test_an_engine_that_is_over_is_given_what_it_did_not_take() -> None:
    chunks, engine = Chunks(), Engine()
    chunks.post(engine, chunk("a", [1.0]), print)  # type: ignore[arg-type]
    engine.is_over = True
    chunks.post(engine, chunk("b", [1.0]), print)  # type: ignore[arg-type]
    assert [rows.ids for rows in engine.posted] == [["a", "b"]]


def test_an_error_of_one_row_and_an_answer_by_itself() -> None:
    async def run() -> None:
        chunks, engine = Chunks(), Engine()
        asked = [asyncio.ensure_future(chunks.ask(engine, chunk(id, [1.0]))) for id in "abc"]  # type: ignore[arg-type]
        await settled()
        (rows,) = chunks.take(engine)  # type: ignore[arg-type]
        bad = CellarError(Reason.NON_FINITE_INPUT, "bad")
        one = AnswerReply(None, [0], [0], [0], [1], [1], np.array([9.0], np.float32))
        chunks.asker(int(rows.call[2]), True).receive(one)
        asked[2].cancel()  # it is answered, and does not know yet
        rows.call, rows.frame_id = rows.call[:2], rows.frame_id[:2]
        chunks.send(reply(chunks, rows, [0, 1], [8.0], [(0, bad)]))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert outcomes[0] is bad
        assert outcomes[1].tolist() == [8.0]  # type: ignore[union-attr]

    asyncio.run(run())
