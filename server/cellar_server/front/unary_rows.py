"""Unary calls that came as rows, from the native transport to the engines that hold their sessions or models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cellar_proto.v1.manifest_pb2 import Mode

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.callers import Caller
from cellar_server.front.rations import number_of
from cellar_server.front.registry import Registry
from cellar_server.front.row_messages import common_predict, common_step, predicts, rows_of, steps
from cellar_server.sessions.messages import PredictRows, Rows, RowsCancel
from cellar_server.sessions.selection import chosen
from cellar_server.transport.base import PREDICT, STEP, UNARY

if TYPE_CHECKING:
    from cellar_server.front.lanes import Lanes

METHODS = {"/cellar.v1.Inference/Step": STEP, "/cellar.v1.Inference/Predict": PREDICT}


class UnaryRows:
    """Takes the lane of unary calls, on the transport's thread. Calls about which something is odd go to the method's
    own handler. lanes: what they are answered by."""

    def __init__(self, registry: Registry, server: Any, lanes: Lanes) -> None:
        self._registry, self._lanes = registry, lanes
        self._transport = server.transport
        server.add_unary(METHODS, self._take, self._cancel)

    def _take(self) -> None:
        for style, rest, caller, numbers, deadline, ids, data in self._transport.take_rows(UNARY):
            if style == STEP:
                rows = rows_of(self._lanes, b"step" + rest, common_step(rest), numbers, deadline, data)
                self._take_steps(rows, rest, self._caller(caller), ids)
            else:
                rows = rows_of(self._lanes, rest, common_predict(rest), numbers, deadline, data, PredictRows)
                self._take_predicts(rows, self._caller(caller))

    def _take_steps(self, rows: Rows, rest: bytes, who: Caller | None, ids: list[bytes]) -> None:
        engines: dict[Engine | None, list[int]] = {}
        rows.ids = []
        self._name(rows, who)
        for i, raw in enumerate(ids):
            id = raw.decode("utf-8", "replace")
            rows.ids.append(id if who is None else who.id_of(id))
            engines.setdefault(None if who is None else self._engine_of(rows.ids[i], who), []).append(i)
        for engine, places in engines.items():
            those = rows if len(places) == len(ids) else chosen(rows, np.array(places))
            if engine is not None:
                engine.post(those)
                continue
            for call, message in zip(those.call.tolist(), steps(those, rest, [ids[i] for i in places]), strict=True):
                self._transport.hand_back(call, message)

    def _take_predicts(self, rows: PredictRows, who: Caller | None) -> None:
        request = rows.frame
        engine = None
        if request is not None and who is not None and not request.is_bulk:
            try:
                who.must_call(request.model)
                found = self._registry.find(request.model, request.version)
                if not self._registry.rations.limits(who.scope, found.name) and found.model.codec is None:
                    engine = found
            except (CellarError, RuntimeError):
                pass  # the handler says so; RuntimeError: the models change just now, on the event loop
        if engine is None:
            self.hand_back(rows)
            return
        is_one = engine.manifest.mode in (Mode.ONE_TO_ONE, Mode.MANY_TO_ONE)
        rows.all_emissions = request.all_emissions if request.HasField("all_emissions") else not is_one
        self._name(rows, who)
        engine.post(rows)

    def hand_back(self, rows: PredictRows) -> None:
        """Sequences go to the method's own handler."""
        for call, message in zip(rows.call.tolist(), predicts(rows), strict=True):
            self._transport.hand_back(call, message)

    def _name(self, rows: Rows, who: Caller | None) -> None:
        """Who takes turns for rows: the caller, without a name its connection."""
        if who is not None and who.scope:
            rows.caller = np.full(len(rows.call), number_of(who.scope))
        else:
            rows.caller = rows.stream

    def _cancel(self, numbers: list[int]) -> None:
        """Calls that are gone: what waits of them is dropped."""
        for engine in self._registry.engines.values():
            engine.post(RowsCancel(np.array(numbers, np.uint64)))

    def _caller(self, caller: bytes) -> Caller | None:
        """Who calls; None where nobody may as that."""
        try:
            return self._registry.callers.named((("authorization", caller.decode("latin-1")),) if caller else ())
        except CellarError:
            return None

    def _engine_of(self, id: str, who: Caller) -> Engine | None:
        """The engine that holds a session; None where it is not here, or is none for this caller, and where limits have
        to be looked at first."""
        try:
            engine: Engine = self._registry.directory.engine_of(id)
        except CellarError:
            return None
        is_open = who.rights.may_call(engine.name) and not self._registry.rations.limits(who.scope, engine.name)
        return engine if is_open else None
