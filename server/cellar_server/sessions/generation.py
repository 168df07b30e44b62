"""What a generation is: what it has emitted, when it is over, and what may be asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sampling_pb2 import Alternatives, FinishReason
from cellar_proto.v1.state_pb2 import GenerationState

from cellar_server.codecs.vocabulary import Vocabulary
from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import GenerateReply, GenerateRequest

# Text of the last emissions that is kept to find a stop text in.
MAX_STOP_BYTES = 64

# Looked up once: a lookup takes as long as all else that is asked of an emission.
_GOES_ON = FinishReason.FINISH_REASON_UNSPECIFIED


@dataclass(slots=True)
class Generation:
    """One generation. `work` is its row of work while it runs or waits for its reader, `slot` its session's, else -1;
    `ids` and `log_probabilities` are all its emissions, at most the manifest's limit.

    What a generation emits follows from its condition, options and seed. So one that was stored earlier than its caller
    knows it goes on from there, and gives the caller what comes after `asked`.
    """

    request: GenerateRequest
    vocabulary: Vocabulary | None
    values: dict[str, str]  # what its condition's placeholders stand for
    begin_id: int  # what the first step takes in
    work: int = -1
    slot: int = -1
    credits: int = 0
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ending: bytes = b""
    finish: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED
    is_parked: bool = False
    is_primed: bool = True  # else its row of work is on the way there, and its session stands at the start
    is_fork: bool = False  # it has emitted nothing since it was copied: its options may still change
    was_stored: bool = False  # it was taken up from a store, where it may stand earlier than its caller
    waits_since: float | None = None  # its caller has had no emission of this call yet
    alternatives: Alternatives | None = None  # of its last step
    is_chosen: bool = False  # an emission was not drawn: it does not follow from condition, options and seed
    asked: int = 0  # emissions up to here the asker holds already: they are made again without a word

    @property
    def num_steps(self) -> int:
        """Steps that it took: one for each emission, and one for its end."""
        return len(self.ids) + (self.finish == FinishReason.FINISH_END)

    def is_over(self, options: Options) -> bool:
        """Whether it is over for one who asks with these options: where a greater number of steps is all that it
        lacked, it goes on."""
        if self.finish == FinishReason.FINISH_MAX_STEPS:
            return options.max_steps <= len(self.ids)
        return bool(self.finish)

    # -- what may be asked of it ---------------------------------------------------------------------------------

    def check_asked(self, request: GenerateRequest, end_id: int) -> None:
        """Whether a request can go on with it; POSITION_CONFLICT, POSITION_GAP, INVALID_REQUEST."""
        is_free = self.is_fork and request.position in (len(self.ids), self.num_steps - 1)
        if (request.text, request.condition) != (self.request.text, self.request.condition) or not (
            is_free or _same_options(request.options, self.request.options)
        ):
            raise CellarError(
                Reason.POSITION_CONFLICT,
                "the session was begun with another condition or other options",
                expected_position=len(self.ids),
            )
        if request.next_id is not None:
            self._check_choice(request.position, request.next_id, end_id)
        can_lag = self.was_stored and not self.is_chosen and not self.is_over(request.options)
        may_lag = can_lag and request.position <= request.options.max_steps
        if request.position > len(self.ids) and not may_lag:
            raise CellarError(
                Reason.POSITION_GAP,
                f"position {request.position} is beyond the {len(self.ids)} emissions made",
                expected_position=len(self.ids),
            )

    def _check_choice(self, position: int, id: int, end_id: int) -> None:
        """Whether emission number `position` can be this id."""
        if self.ids[position : position + 1] == [id]:
            return  # it was drawn, or chosen by this very request
        if not self.is_fork or position != self.num_steps - 1:
            raise CellarError(
                Reason.POSITION_CONFLICT,
                "another emission can be chosen for the last step of a fork that has emitted nothing itself",
                expected_position=len(self.ids),
            )
        known = self.alternatives.ids if self.alternatives is not None else ()
        if id not in known or id == end_id:
            raise CellarError(
                Reason.INVALID_REQUEST, f"{id} is none of the alternatives that the step was answered with"
            )

    def choose(self, position: int, id: int, options: Options) -> bool:
        """Makes emission number `position`, the last one, a checked id; whether that changed anything. The row after
        its step is the same."""
        if self.ids[position : position + 1] == [id]:
            return False
        assert self.alternatives is not None
        at = list(self.alternatives.ids).index(id)
        self.ids[position:] = [id]
        self.log_probabilities[position:] = [self.alternatives.log_probabilities[at]]
        self.ending = self.text(0)[-MAX_STOP_BYTES:]
        self.finish, self.is_chosen = self._finish(options), True
        return True

    # -- what it emits -------------------------------------------------------------------------------------------

    def emit(self, id: int, log_probability: float, end_id: int) -> None:
        """Takes what its step drew, which may end it."""
        if id == end_id:
            self.finish = FinishReason.FINISH_END
            return
        options, position = self.request.options, len(self.ids)
        self.ids.append(id)
        self.log_probabilities.append(log_probability)
        self.credits -= position >= self.asked
        if options.stop:
            piece = self.text(position)
            self.ending = (self.ending + piece)[-MAX_STOP_BYTES - len(piece) :]
        self.finish = self._finish(options)

    def _finish(self, options: Options) -> FinishReason:
        """Whether an emission that is not the end is the last one."""
        if options.stop and any(self.ending.endswith(stop) for stop in options.stop):
            return FinishReason.FINISH_STOP
        if len(self.ids) >= options.max_steps:
            return FinishReason.FINISH_MAX_STEPS
        return _GOES_ON

    def text(self, position: int) -> bytes:
        """What its emissions from a position on add to its text."""
        ids = self.ids[position:]
        if self.vocabulary is None or not ids:
            return b""
        return self.vocabulary.text(ids, self.values, position == 0)

    def reply(
        self,
        position: int,
        finish: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED,
        error: CellarError | None = None,
    ) -> GenerateReply:
        """Its emissions from a position on, for its asker."""
        return GenerateReply(
            self.request.to,
            self.ids[position:],
            self.log_probabilities[position:],
            self.text(position),
            position,
            self.request.options.seed,
            finish,
            error,
            None if error is not None else self.alternatives,
        )

    # -- as one piece --------------------------------------------------------------------------------------------

    def to_state(self) -> GenerationState:
        """What is stored and exported of it beside its session's row and position."""
        return GenerationState(
            text=self.request.text,
            condition=self.request.condition,
            sampling=self.request.options.to_proto(),
            ids=self.ids,
            log_probabilities=self.log_probabilities,
            finish=self.finish,
            is_fork=self.is_fork,
            alternatives=self.alternatives,
            is_chosen=self.is_chosen,
        )

    def take_up(self, state: GenerationState) -> None:
        """Makes one that has just begun what a checked state says."""
        self.ids, self.log_probabilities = list(state.ids), list(state.log_probabilities)
        self.finish, self.is_fork, self.is_chosen = state.finish, state.is_fork, state.is_chosen
        self.was_stored = True
        self.alternatives = state.alternatives if state.HasField("alternatives") else None
        self.ending = self.text(0)[-MAX_STOP_BYTES:]


def _same_options(later: Options, first: Options) -> bool:
    """Whether two requests draw the same emissions; the seed counts where the later one names it."""
    same = (later.temperature, later.top_k, later.top_p, later.stop) == (
        first.temperature,
        first.top_k,
        first.top_p,
        first.stop,
    )
    return same and (not later.is_seeded or later.seed == first.seed)
