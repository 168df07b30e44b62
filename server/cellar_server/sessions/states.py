"""Sessions as one piece: out of the table into a message, and back."""

from __future__ import annotations

import hashlib

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.state_pb2 import SessionState

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.generations import Generations

FORMAT = 1


def model_sha256(manifest: Manifest) -> bytes:
    """One digest of all files of a model."""
    lines = [f"{name} {digest}\n" for name, digest in sorted(manifest.sha256.items())]
    return hashlib.sha256("".join(lines).encode()).digest()


class States:
    """Writes slots as SessionState messages and reads them back: row, tail, position and stored answers together."""

    def __init__(self, core: Core, generations: Generations) -> None:
        self.core = core
        self.generations = generations
        self._sha256 = model_sha256(core.model.manifest)

    def write(self, slot: int, *, is_described: bool = True) -> SessionState:
        """A slot's session as it stands after its last committed chunk; is_described: with the names of the parts."""
        core, table, manifest = self.core, self.core.table, self.core.model.manifest
        now = core.clock()
        generation = self.generations.write(slot)
        state = SessionState(
            format=FORMAT,
            model=manifest.name,
            version=manifest.version,
            model_sha256=self._sha256,
            position=int(table.position[slot]),
            parts=manifest.parts if is_described else (),
            row=table.state[slot].astype("<f4").tobytes(),
            tail=table.held.get(slot, b""),
            max_idle_s=float(table.max_idle[slot]),
            max_age_s=float(table.max_age[slot]),
            age_s=now - float(table.opened[slot]),
            idle_s=now - float(table.last_use[slot]),
            generation=generation,
            disconnect_grace_s=table.graces.get(slot),
        )
        for start, length, digest, y in core.answers.of(slot):
            state.answers.add(
                start=start, length=length, digest=digest, emissions=len(y), outputs=y.astype("<f4").tobytes()
            )
        return state

    def check(self, state: SessionState) -> None:
        """CellarError STATE_INCOMPATIBLE with what does not fit this model."""
        manifest = self.core.model.manifest
        size = 4 * manifest.state_size
        answers = int(np.prod(self.core.output_shape, dtype=np.int64)) * 4
        for is_bad, what in (
            (state.format != FORMAT, f"the state has format {state.format}; this server reads {FORMAT}"),
            (
                (state.model, state.version) != (manifest.name, manifest.version),
                f"the state is of {state.model}/{state.version}, not of {manifest.name}/{manifest.version}",
            ),
            (state.model_sha256 != self._sha256, "the state is of other weights: the models' files differ"),
            (
                bool(state.parts)
                and [(p.name, p.offset, list(p.shape)) for p in state.parts]
                != [(p.name, p.offset, list(p.shape)) for p in manifest.parts],
                "the state's parts are not those of the model",
            ),
            (len(state.row) != size, f"the state's row is {len(state.row)} bytes; the model's is {size}"),
            (state.position >= 1 << 62, "the state's position is too large"),
            (
                any(len(a.outputs) != a.emissions * answers for a in state.answers),
                "a stored answer is not of the model's shape",
            ),
            (len(state.tail) > 1 << 16, "the state's tail is too long"),
            (bool(state.tail) and self.core.model.codec is None, "the model keeps no tail"),
            (
                not (manifest.HasField("generation") if state.HasField("generation") else self.core.can_hold_sessions),
                "a state of a generation, or of none, does not fit the model",
            ),
        ):
            if is_bad:
                raise CellarError(Reason.STATE_INCOMPATIBLE, what)
        if state.HasField("generation"):
            self.generations.check(state)
        if len(state.row) and not np.isfinite(np.frombuffer(state.row, "<f4")).all():
            raise CellarError(Reason.STATE_INCOMPATIBLE, "the state holds NaN or an infinity")

    def read(self, state: SessionState, slot: int) -> None:
        """Puts a checked state into a slot that was just opened; its age and idle time go on."""
        core, table = self.core, self.core.table
        now = core.clock()
        table.state[slot] = np.frombuffer(state.row, "<f4")
        table.position[slot] = table.accepted[slot] = state.position
        table.date_back(slot, now - state.age_s, now - state.idle_s)
        table.hold(slot, state.tail)
        if state.HasField("disconnect_grace_s"):
            table.graces[slot] = state.disconnect_grace_s
        if state.HasField("generation"):
            self.generations.read(slot, state.generation)
        for answer in state.answers:
            y = np.frombuffer(answer.outputs, "<f4").reshape(answer.emissions, *core.output_shape)
            core.answers.store(slot, answer.start, answer.length, answer.digest, y)
