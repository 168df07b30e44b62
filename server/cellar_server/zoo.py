"""Model folders: found, checked against their manifests, and opened. A folder is data, never code."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest, Mode, PositionUnit
from cellar_proto.v1.manifest_pb2 import TextCodec as TextSpec
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sampling_pb2 import Sampling
from cellar_proto.v1.tensor_pb2 import DataType
from google.protobuf import json_format

from cellar_server.codecs.dialogue_act import DialogueActCodec
from cellar_server.codecs.name import NameCodec
from cellar_server.codecs.pcm import PcmCodec
from cellar_server.codecs.text import TextCodec
from cellar_server.codecs.vocabulary import Vocabulary
from cellar_server.errors import CellarError
from cellar_server.runtime.base import Runtime, StartupError
from cellar_server.runtime.onnx import DTYPES, GraphMismatch, OnnxRuntime
from cellar_server.sampling.sampler import Options

log = logging.getLogger("cellar_server.zoo")
# Bytes of the manifest, of a codec's file, and of any other file.
MAX_MANIFEST_BYTES, MAX_CODEC_BYTES, MAX_FILE_BYTES = 4 << 20, 64 << 20, 1 << 30
# Numbers in a state row; in one step's input or output, and in a condition.
MAX_STATE, MAX_NUMBERS = 1 << 22, 1 << 20
# A session's tail is less than a frame of 16-bit samples, and has to stay small.
MAX_FRAME_SAMPLES = 1 << 14
MAX_SPELT_BYTES = 64
# what stands for a byte in a spelt word: 1 + its value, or 0 for none
NUM_BYTE_VALUES = 257


@dataclass(frozen=True)
class Entry:
    """A folder that claims to be a model: <name>/<version>/manifest.json."""

    name: str
    version: int
    folder: Path


@dataclass(frozen=True)
class Model:
    """An opened model: its manifest, runtime and codecs."""

    manifest: Manifest
    runtime: Runtime
    text: TextCodec | None = None
    condition: DialogueActCodec | NameCodec | None = None
    vocabulary: Vocabulary | None = None
    pcm: PcmCodec | None = None
    source: TextCodec | None = None  # of a condition that is a sequence

    @property
    def codec(self) -> TextCodec | PcmCodec | None:
        """What makes steps of what callers send; None where they send steps."""
        return self.text or self.pcm


def find(folder: Path) -> list[Entry]:
    """All entries <folder>/<name>/<version>/, by name and version; StartupError where the folder is none."""
    if not folder.is_dir():
        raise StartupError(f"the models folder {folder} does not exist")
    entries = [
        Entry(path.parent.name, int(path.name), path)
        for path in folder.glob("*/*")
        if path.is_dir() and path.name.isdecimal()
    ]
    return sorted(entries, key=lambda entry: (entry.name, entry.version))


def load(
    entry: Entry, *, provider: str = "cpu", precision: str = "float32", intra_op: int = 1, spin: bool = False
) -> Model:
    """Opens one entry; CellarError MODEL_BROKEN with what is wrong with it.

    precision: served where the folder holds it and its manifest names no other; else float32. A device serves float32.
    """
    try:
        manifest = _manifest(entry)
        manifest = serve_in(manifest, manifest.precision or precision if provider == "cpu" else "float32")
        _check_parts(manifest)
        Options.from_proto(Sampling(), manifest.generation, lambda: 0)  # its own defaults
        runtime = OnnxRuntime(manifest, entry.folder, provider=provider, intra_op=intra_op, spin=spin)
        _try_out(manifest, runtime)
        return Model(manifest, runtime, *_codecs(manifest, entry.folder))
    except StartupError:
        raise
    except Exception as error:
        # whatever a folder does wrong, it is the folder that is broken, not the server
        reason = " ".join(str(error).split())[:500]
        raise CellarError(Reason.MODEL_BROKEN, f"{entry.name}/{entry.version}: {reason}") from error


def _manifest(entry: Entry) -> Manifest:
    path = entry.folder / "manifest.json"
    if path.is_symlink() or not path.is_file():
        raise ValueError("manifest.json is missing, or no plain file")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ValueError(f"manifest.json is over {MAX_MANIFEST_BYTES} bytes")
    manifest = json_format.Parse(path.read_text("utf-8"), Manifest())
    if manifest.format != 1:
        raise ValueError(f"manifest format {manifest.format}; this server reads 1")
    if (manifest.name, manifest.version) != (entry.name, entry.version):
        raise ValueError(f"the manifest is of {manifest.name}/{manifest.version}")
    if manifest.input.dtype not in DTYPES or manifest.mode == Mode.MODE_UNSPECIFIED or not manifest.state_size:
        raise ValueError("the manifest lacks mode, input.dtype or state_size")
    precisions = [variant.precision for variant in manifest.variants]
    if manifest.precision not in ("", "float32", *precisions) or not all(
        variant.step_file for variant in manifest.variants
    ):
        raise ValueError(f"the manifest has {precisions} beside float32 and is to be served in {manifest.precision!r}")
    _check_sizes(manifest)
    codecs = {manifest.text.tokenizer_file, manifest.prime.text.tokenizer_file, manifest.generation.vocabulary_file}
    named = [
        manifest.step.file,
        manifest.prime.graph.file,
        *(variant.step_file for variant in manifest.variants),
        manifest.start_file,
        manifest.text.tokenizer_file,
        manifest.prime.text.tokenizer_file,
        manifest.generation.vocabulary_file,
    ]
    for name in named:
        if name and name not in manifest.sha256:
            raise ValueError(f"sha256 has no entry for {name}")
    for name, sha256 in sorted(manifest.sha256.items()):
        file = entry.folder / name
        if name == ".." or Path(name).name != name or "\\" in name or "\0" in name or file.is_symlink():
            raise ValueError(f"{name!r} is not a plain file name")
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        most = MAX_CODEC_BYTES if name in codecs else MAX_FILE_BYTES
        if file.stat().st_size > most:
            raise ValueError(f"{name} is over {most} bytes")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{name} is not the file that the manifest describes (sha256)")
    return manifest


def _check_sizes(manifest: Manifest) -> None:
    """No size that a manifest names may be more than a model of this kind has: memory is taken by it."""
    sizes = {
        "state_size": [manifest.state_size],
        "input.shape": manifest.input.shape,
        "output.shape": manifest.output.shape,
        "prime.condition.shape": manifest.prime.condition.shape,
    }
    for name, shape in sizes.items():
        most = MAX_STATE if name == "state_size" else MAX_NUMBERS
        if len(shape) > 8 or math.prod(shape) > most or 0 in shape:
            raise ValueError(f"{name} is {' x '.join(map(str, shape))}; 1 to {most} numbers are served")
    if max(manifest.parity.min_rows, manifest.text.max_word_bytes, manifest.prime.text.max_word_bytes) > 1 << 16:
        raise ValueError("parity.min_rows or text.max_word_bytes is over 65536")
    prime = manifest.prime
    if manifest.HasField("prime") and not prime.graph.file:
        raise ValueError("the manifest's prime names no graph")
    if not prime.is_recurrent and (
        prime.WhichOneof("codec") == "text" or prime.max_steps or prime.HasField("end_id") or prime.is_prompt
    ):
        raise ValueError("prime.text, max_steps, end_id and is_prompt are for a prime that is_recurrent")
    if (prime.WhichOneof("codec") == "text" or prime.HasField("end_id") or prime.is_prompt) and (
        prime.condition.dtype != DataType.INT64 or prime.condition.shape
    ):
        raise ValueError("prime.text, end_id and is_prompt are for a condition of int64 ids")


def serve_in(manifest: Manifest, precision: str) -> Manifest:
    """The manifest of what is served: the graphs of one precision as if there were no other; float32 where the model
    has it in no such precision.

    The files of the others are left out of `sha256`, so a state fits the precision that computed it and no other, and a
    model's float32 states fit it also after int8 was added to its folder.
    """
    served = Manifest()
    served.CopyFrom(manifest)
    served.precision = "float32"
    del served.variants[:]
    for variant in manifest.variants:
        if variant.precision == precision:
            served.precision = precision
            del served.sha256[served.step.file]
            if served.prime.graph.file == served.step.file:
                served.prime.graph.file = variant.step_file
            served.step.file = variant.step_file
            served.parity.CopyFrom(variant.parity)
        elif variant.step_file != served.step.file:
            served.sha256.pop(variant.step_file, None)
    return served


def _check_parts(manifest: Manifest) -> None:
    """The parts must tile the state row, each name once."""
    at, names = 0, set()
    for part in sorted(manifest.parts, key=lambda part: part.offset):
        if part.offset != at or part.name in names:
            raise ValueError(f"state part {part.name!r} does not follow the one before it")
        names.add(part.name)
        at += math.prod(part.shape)
    if at != manifest.state_size:
        raise ValueError(f"the state's parts hold {at} numbers; state_size is {manifest.state_size}")


def _try_out(manifest: Manifest, runtime: Runtime) -> None:
    """Runs the step at two sizes: shapes as said, outputs finite, and in cuts the same as whole."""
    tolerance = max(manifest.parity.tolerance, 1e-6)
    for rows, steps in ((3, 2), (2, 5)):
        x = np.zeros((rows, steps, *runtime.input_shape), runtime.input_dtype)
        state = np.tile(runtime.start, (rows, 1))
        y, following = runtime.step(x, state)
        if y.shape != (rows, steps, *runtime.output_shape) or following.shape != state.shape:
            raise GraphMismatch(f"for {rows} rows of {steps} steps y is {y.shape} and the state {following.shape}")
        if not (np.isfinite(y).all() and np.isfinite(following).all()):
            raise GraphMismatch("zeros in give outputs that are not finite")
        if manifest.is_whole_only:
            continue
        for t in range(steps):
            one, state = runtime.step(x[:, t : t + 1], state)
            if not np.allclose(one[:, 0], y[:, t], rtol=0, atol=tolerance * max(1.0, float(np.abs(y).max()))):
                raise GraphMismatch("step by step gives other outputs than the whole sequence")
    if manifest.HasField("prime"):
        spec = manifest.prime.condition
        time = (3,) if manifest.prime.is_recurrent else ()
        condition = np.zeros((2, *time, *spec.shape), DTYPES[spec.dtype])
        state = runtime.prime(condition, np.tile(runtime.start, (2, 1)))
        if state.shape != (2, manifest.state_size):
            raise GraphMismatch(f"prime gives a state of {state.shape}")


def _codecs(
    manifest: Manifest, folder: Path
) -> tuple[TextCodec | None, DialogueActCodec | NameCodec | None, Vocabulary | None, PcmCodec | None, TextCodec | None]:
    text = vocabulary = pcm = source = None
    condition: DialogueActCodec | NameCodec | None = None
    if manifest.position_unit == PositionUnit.SAMPLES:
        shape = list(manifest.input.shape)
        if manifest.input.dtype != DataType.INT16 or len(shape) != 1 or not 0 < shape[0] <= MAX_FRAME_SAMPLES:
            raise ValueError(f"positions in samples need int16 frames of 1 to {MAX_FRAME_SAMPLES} samples, not {shape}")
        pcm = PcmCodec(shape[0])
    if manifest.HasField("text"):
        text = _text(manifest.text, folder)
        size = text.tokenizer.get_vocab_size()
        if size > manifest.input.vocabulary:
            raise ValueError(f"the tokenizer has {size} tokens; the graph takes {manifest.input.vocabulary}")
        if text.step_shape and manifest.input.vocabulary < NUM_BYTE_VALUES:
            raise ValueError(
                f"a spelt byte is up to {NUM_BYTE_VALUES - 1}; the graph takes {manifest.input.vocabulary}"
            )
        if tuple(manifest.input.shape) != text.step_shape:
            raise ValueError(f"a step of the text is {text.step_shape}; the graph takes {tuple(manifest.input.shape)}")
    if manifest.prime.WhichOneof("codec") == "text":
        source = _text(manifest.prime.text, folder)
        size = source.tokenizer.get_vocab_size()
        if size > manifest.prime.condition.vocabulary:
            raise ValueError(f"the prime's tokenizer has {size} tokens; it takes {manifest.prime.condition.vocabulary}")
        if tuple(manifest.prime.condition.shape) != source.step_shape:
            raise ValueError(f"a step of the prime's text is {source.step_shape}, not the condition's shape")
    if manifest.prime.WhichOneof("codec") == "dialogue_act":
        condition = DialogueActCodec(manifest.prime.dialogue_act)
        if list(manifest.prime.condition.shape) != [len(manifest.prime.dialogue_act.features)]:
            raise ValueError("the condition's size is not the number of the codec's features")
    if manifest.prime.WhichOneof("codec") == "name":
        condition = NameCodec(manifest.prime.name)
        if list(manifest.prime.condition.shape) != [len(manifest.prime.name.names)]:
            raise ValueError("the condition's size is not the number of the codec's names")
    if manifest.generation.vocabulary_file:
        vocabulary = Vocabulary(folder / manifest.generation.vocabulary_file, manifest.generation.separator)
        if [len(vocabulary.words)] != list(manifest.output.shape):
            raise ValueError(f"{len(vocabulary.words)} words; the graph emits {list(manifest.output.shape)} logits")
    return text, condition, vocabulary, pcm, source


def _text(spec: TextSpec, folder: Path) -> TextCodec:
    if max(spec.head_bytes, spec.tail_bytes) > MAX_SPELT_BYTES:
        raise ValueError(f"text.head_bytes or text.tail_bytes is over {MAX_SPELT_BYTES}")
    return TextCodec(
        folder / spec.tokenizer_file,
        spec.max_word_bytes or 256,
        is_by_character=spec.is_by_character,
        head_bytes=spec.head_bytes,
        tail_bytes=spec.tail_bytes,
    )
