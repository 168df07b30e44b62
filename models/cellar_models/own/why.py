"""Why a network cannot become an entry: every refusal has one of these reasons and says it in plain words."""

from __future__ import annotations

from enum import Enum


class Why(Enum):
    """The named reasons. The value says what such a network does, for a table of them."""

    EXAMPLE = "the example is no batch of sequences: [batch, time, ...], int16, int64, uint8 or floating point"
    NAME = "a name is lower-case letters, digits and hyphens; a version a whole number from 1"
    SCRIPTED = "it is a TorchScript program, whose layers cannot be reached: export the module that it was made from"
    FORWARD_FAILED = "it fails on a batch or a length other than the example's"
    SEVERAL_INPUTS = "it takes more than one sequence; a step takes one"
    SEVERAL_OUTPUTS = "it gives several outputs: name one with output="
    OUTPUT_LAYOUT = "its output has no row for each sequence, or no place for each step"
    RANDOM = "the same input gives other outputs each time"
    NO_STATE = "no recurrent layer and no causal convolution: nothing to keep between steps"
    HIDDEN_LOOP = "it carries a state of its own from step to step, where no layer shows it: return it, and give state="
    START_FROM_INPUT = "its first hidden state is computed from the input"
    LOOP_ORDER = "one cell is called several times in a step"
    PACKED_ELSEWHERE = "it packs sequences where that cannot be followed"
    NOT_CAUSAL = "an output depends on later inputs"
    LOOKS_AHEAD = "a convolution looks at later inputs"
    CHANGES_LENGTH = "a convolution gives another number of steps than it takes"
    ATTENTION = "attention over the past: what it must remember grows with every step, a state row does not"
    POOLS_OVER_TIME = "it sums, averages or picks over all steps"
    SHIFTS = "it moves its input in time outside of a convolution: what it looks back at has no place in the state"
    COUNTS_STEPS = "it counts the steps (positions): a session's step does not know its number"
    FANS_OUT = "a layer is run over several sequences for each one (channels, sentences of a text)"
    NORMALISES_OVER_TIME = "it normalises over all steps"
    MIXES_ROWS = "a row's output depends on the other rows of the batch"
    STATE = "its state is not a tensor, or tensors, of floating-point numbers with a row for each sequence"
    EXPORTER = "PyTorch's ONNX exporter cannot write it"
    PARITY = "step by step it gives other outputs than for the whole sequence"
    PAIRS = "which output is the next value of which state input is not said"
    AXES = "which axes are batch and time is not said"
    FIXED = "a size inside of the graph is fixed, or it is not the same function of every row and step"
    LABELS = "the labels do not fit the output"
    SOUND = "PCM needs an int16 input of frames, [batch, time, samples]"
    TOKENIZER = "the tokenizer does not fit the network, or text that arrives word by word"


class ExportError(ValueError):
    """A network that cannot be served as asked. why: the named reason; the message says it with the network's names.

    Nothing was written.
    """

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(f"{why.name}: {message}")
        self.why = why
