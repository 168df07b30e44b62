"""What goes into an engine and what comes out: plain data. `to` is the asker's own object, carried through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.sampling_pb2 import Alternatives, FinishReason

from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.timing import Timing

# Whom handles are issued to for chunks that come by session id: no stream has this number.
UNARY_STREAM = 0xFFFFFFFF

# Rows that came one a message and share an outlet share an asker, and are answered in one reply: the transport's, and
# those of sequences of the Open Inference Protocol.
OUTLETS = BY_CALL, BY_SEQUENCE = 0, -1


@dataclass(slots=True)
class FrameRequest:
    """Chunks of sessions that stream `stream` holds handles of; answered by AnswerReply and FrameReply."""

    to: Any
    stream: int
    frame: Frame
    frame_id: int
    caller: int = 0  # who takes turns with others; 0: the stream does
    arrived_s: float = 0.0  # on the engine's clock, from when its timeouts count; 0: from when it is admitted
    columns: Any = None  # its rows as Columns, where the receiver read it ahead
    live: int = 0  # its rows that wait or run; the engine's own count
    deadline: np.ndarray | None = None  # of its rows [n] on the engine's clock, beside their timeouts
    timing: Timing | None = None  # here and below: filled where somebody traces the request
    data: bytes | None = None  # of its inputs, where the frame has them not

    def asker(self, row: int) -> tuple[Any, int]:
        """Who asked for a row, and the id of the frame in which."""
        return self.to, self.frame_id

    def chunk(self, row: int) -> tuple[int, int, int]:
        """Handle of a row, the stream that it was issued to, and where the chunk starts."""
        return self.frame.handles[row], self.stream, self.frame.positions[row]


@dataclass(slots=True)
class Rows:
    """Chunks that came one a message, of many streams or calls, as columns [n]; answered by RowsReply, and by an
    AnswerReply each where they are refused or were answered before.

    rest, frame: what they have in common, without what the columns hold, as bytes and read; call: the transport's
    number of each one's call; stream: whom its handle was issued to; handle: 0 where `ids` names the session; position,
    length, first_axis (of the shape): -1 for none given; size: bytes of each chunk; data: these bytes behind one
    another; deadline: on the engine's clock, inf for none, None where no row has one.
    """

    to: Any
    rest: bytes
    frame: Any
    call: np.ndarray
    stream: np.ndarray
    frame_id: np.ndarray
    handle: np.ndarray
    position: np.ndarray
    length: np.ndarray
    first_axis: np.ndarray
    size: np.ndarray
    data: np.ndarray
    ids: list[str] | None = None
    deadline: np.ndarray | None = None
    live: int = 0  # as in FrameRequest
    caller: np.ndarray | None = None  # who takes turns with others; None: the streams do
    arrived_s: float = 0.0  # their deadlines say it all
    timing: Timing | None = None  # of a row alone
    timings: np.ndarray | None = None  # of each row [n] its Timing or None; None where none is traced
    outlet: int = BY_CALL

    @property
    def callers(self) -> np.ndarray:
        """Who takes turns with others: [n]."""
        return self.stream if self.caller is None else self.caller

    def asker(self, row: int) -> tuple[Any, int]:
        """Who asked for a row, and the id of the frame in which."""
        return self.to.asker(int(self.call[row]), self.ids is not None), int(self.frame_id[row])

    def chunk(self, row: int) -> tuple[int, int, int]:
        """Handle of a row, the stream that it was issued to, and where the chunk starts."""
        return int(self.handle[row]), int(self.stream[row]), int(self.position[row])


@dataclass(slots=True)
class PredictRows(Rows):
    """Whole sequences that came one a call, all in the same words: Rows that name no session; answered by RowsReply
    (`positions` of which are the model's version) or RowsRefused, or given back by RowsBack where something is odd.

    frame: the PredictRequest without what the columns hold, None where it is none; all_emissions: as in PredictRequest.
    """

    all_emissions: bool = True


@dataclass(slots=True)
class RowsCancel:
    """Calls that are gone, by the transport's numbers [n]."""

    call: np.ndarray


@dataclass(slots=True)
class StepRequest:
    """One chunk of one session, by its id and without a stream; answered by an AnswerReply or a FrameReply.

    caller: who takes turns with others; opens: the session is a new one, closed again where the chunk is refused;
    position: at which the chunk starts, None for where the session stands; length: steps (bytes, for text); ends: the
    sequence ends with it; deadline_s: on the engine's clock, 0 for none.
    """

    to: Any
    id: str
    dtype: int
    shape: list[int]
    data: bytes
    length: int
    opens: bool = False
    position: int | None = None
    ends: bool = False
    deadline_s: float = 0.0
    is_bulk: bool = False
    caller: int = 0
    timing: Timing | None = None


@dataclass(slots=True)
class PredictRequest:
    """Whole sequences from the start state; answered by one PredictReply.

    lengths: steps (bytes, for text) of each sequence [N]; data: the packed values; all_emissions: every emission of a
    sequence, else the last one; deadline_s: on the engine's clock, 0 for none; caller: who takes turns with others.
    """

    to: Any
    lengths: list[int]
    dtype: int
    shape: list[int]
    data: bytes
    all_emissions: bool
    deadline_s: float = 0.0
    is_bulk: bool = False
    caller: int = 0
    timing: Timing | None = None


@dataclass(slots=True)
class GenerateRequest:
    """One generation; answered by GenerateReply, the last of which has `finish` or `error`.

    text or condition: what primes it (raw text for a codec; numbers [...] otherwise); session_id: keep it under this
    id; position: emissions the caller holds already; credits: emissions that may be made before the asker must say
    `Credit` (so that a slow reader stops its own generation only); caller: who takes turns with others;
    num_alternatives: of each step to be told; next_id: what emission number `position` is to be.
    """

    to: Any
    text: bytes
    condition: bytes
    options: Options
    session_id: str = ""
    position: int = 0
    deadline_s: float = 0.0
    credits: int = 32
    caller: int = 0
    timing: Timing | None = None
    num_alternatives: int = 0
    next_id: int | None = None


@dataclass(slots=True)
class Credit:
    """The reader of a generation took in `count` more emissions: as many more may be made."""

    to: Any
    count: int


@dataclass(slots=True)
class Cancel:
    """The asker of a predict or a generation is gone: drop it."""

    to: Any


@dataclass(slots=True)
class StreamClosed:
    """Stream `stream` is gone: its handles are void; with is_cancelled its chunks not yet begun are dropped."""

    stream: int
    is_cancelled: bool


@dataclass(slots=True)
class Call:
    """Runs `function(sessions)` on the engine's thread between two runs; answered by one CallReply."""

    to: Any
    function: Callable[[Any], Any]


@dataclass(slots=True)
class AnswerReply:
    """Rows that one run finished (or that were refused) for one stream. Columns are [M] (frame_ids: one where all rows
    are of one frame); errors by place in them.

    outputs: float32 [sum(lengths), ...].
    """

    to: Any
    frame_ids: list[int]
    handles: list[int]
    starts: list[int]
    positions: list[int]
    lengths: list[int]
    outputs: np.ndarray
    errors: list[tuple[int, CellarError]] = field(default_factory=list)
    durable: list[int] = field(default_factory=list)  # position up to which each session is stored; empty: none


@dataclass(slots=True)
class RowsReply(AnswerReply):
    """An AnswerReply to rows of many calls: frame_ids, handles, starts, positions, lengths are arrays [M]; call: the
    transport's number of each one's."""

    call: Any = None


@dataclass(slots=True)
class RowsRefused:
    """One error for many rows. calls, frame_ids, handles, starts, positions: as in RowsReply, [M]; shape: of an output;
    ends_calls: each is a unary call, which ends with it; durable: up to where their sessions are stored, empty without
    a store."""

    to: Any
    call: np.ndarray
    frame_ids: np.ndarray
    handles: np.ndarray
    starts: np.ndarray
    positions: np.ndarray
    shape: tuple[int, ...]
    error: CellarError
    ends_calls: bool = False
    durable: Any = ()

    @property
    def errors(self) -> list[tuple[int, CellarError]]:
        """The error of each row."""
        return [(row, self.error) for row in range(len(self.call))]


@dataclass(slots=True)
class RowsBack:
    """Rows that another engine's handles stand in."""

    to: Any
    rows: Rows


@dataclass(slots=True)
class FrameReply:
    """A frame that could not be read at all."""

    to: Any
    frame_id: int
    error: CellarError


@dataclass(slots=True)
class PredictReply:
    """lengths: emissions of each sequence [N]; outputs: float32 [sum(lengths), ...]; errors by sequence; `error`: the
    whole call failed."""

    to: Any
    lengths: list[int]
    outputs: np.ndarray | None
    errors: list[tuple[int, CellarError]] = field(default_factory=list)
    error: CellarError | None = None


@dataclass(slots=True)
class GenerateReply:
    """Emissions from `position` on. `finish` other than 0, or `error`: this was the last reply."""

    to: Any
    ids: list[int]
    log_probabilities: list[float]
    text: bytes
    position: int
    seed: int
    finish: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED
    error: CellarError | None = None
    alternatives: Alternatives | None = None

    def join(self, following: GenerateReply) -> None:
        """Takes in the emissions that come next, and how the generation stands after them."""
        self.ids += following.ids
        self.log_probabilities += following.log_probabilities
        self.text += following.text
        self.finish, self.alternatives = following.finish, following.alternatives


@dataclass(slots=True)
class CallReply:
    """What the function of a Call returned, or the error that it raised."""

    to: Any
    value: Any = None
    error: CellarError | None = None


Request = (
    FrameRequest
    | Rows
    | RowsCancel
    | StepRequest
    | PredictRequest
    | GenerateRequest
    | Credit
    | Cancel
    | StreamClosed
    | Call
)
Reply = AnswerReply | RowsRefused | RowsBack | FrameReply | PredictReply | GenerateReply | CallReply
