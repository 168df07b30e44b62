"""What an engine tells of itself."""

from __future__ import annotations

from cellar_proto.v1.models_pb2 import Counters
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.sessions.core import Core, Counts
from cellar_server.sessions.sessions import Sessions
from cellar_server.zoo import Model


class Figures:
    """Sizes, limits and counts of one model's sessions, as they stand; any thread may ask."""

    def __init__(self, model: Model, sessions: Sessions) -> None:
        self.model = model
        self._sessions = sessions
        self._core: Core = sessions.core

    @property
    def num_sessions(self) -> int:
        """Open sessions."""
        return self._core.table.num_open

    @property
    def queue_rows(self) -> int:
        """Rows that wait or run."""
        return self._core.work.num_used

    @property
    def load(self) -> float:
        """How close to refusing new sessions this model is: 1 and more where it does."""
        return self._core.load

    @property
    def num_generations(self) -> int:
        """Generations that run or wait for their reader."""
        return self._sessions.generations.rows.num_live

    @property
    def max_queue_rows(self) -> int:
        """Rows that may wait or run."""
        return self._core.work.capacity

    @property
    def max_sessions(self) -> int:
        """Sessions that may be open."""
        return self._core.table.capacity

    @property
    def stored_answer_bytes(self) -> int:
        """Bytes of answers kept for retries."""
        return self._core.answers.num_bytes

    @property
    def twin_steps(self) -> int:
        """Rows run a second time beside a lone row."""
        return getattr(self.model.runtime, "twin_steps", 0)

    @property
    def is_storing(self) -> bool:
        """Its sessions are kept in a store."""
        return self._core.durability.is_on

    @property
    def store_lag_s(self) -> float:
        """Age in seconds of the oldest change that is not in the store; 0 where everything is."""
        return self._core.durability.lag_s

    @property
    def num_unstored(self) -> int:
        """Sessions, and ends of sessions, that are not in the store as they stand."""
        return self._core.durability.num_unstored

    def counts(self) -> Counts:
        """The engine's own counts, as they stand; read only."""
        return self._core.counts

    def counters(self) -> Counters:
        """Exact counts since the model was loaded."""
        core = self._core
        counts = core.counts
        return Counters(
            runs=counts.runs,
            prime_runs=counts.prime_runs,
            steps=counts.steps,
            padded_steps=counts.padded_steps,
            rows=counts.rows,
            chunks=counts.chunks,
            chunks_replayed=counts.chunks_replayed,
            chunks_failed=counts.chunks_failed,
            sessions_live=core.table.num_open,
            sessions_opened=counts.sessions_opened,
            sessions_expired=counts.sessions_expired,
            stored_answer_bytes=self.stored_answer_bytes,
            twin_steps=self.twin_steps,
            sessions_ended={Reason.Name(reason): count for reason, count in counts.sessions_ended.items()},
            sessions_spilled=counts.sessions_spilled,
            sessions_taken_up=counts.sessions_taken_up,
            sessions_handed_over=counts.sessions_handed_over,
            stored_sessions=counts.stored_sessions,
            store_failures=counts.store_failures,
            chunks_joined=counts.chunks_joined,
            refusals={Reason.Name(reason): count for reason, count in counts.refusals.copy().items()},
            rows_waiting=core.work.num_used,
            max_rows_waiting=core.work.capacity,
            rows_begun=counts.queue_rows,
            queue_s=counts.queue_s,
            run_s=counts.run.total,
            store_lag_s=self.store_lag_s,
            sessions_unstored=self.num_unstored,
            generations=counts.generations,
            first_emissions=sum(counts.first_emission.bins),
            first_emission_s=counts.first_emission.total,
            copied_bytes=core.copied_bytes,
            waits=counts.waits,
            vain_waits=counts.vain_waits,
            rows_passed=counts.rows_passed,
        )
