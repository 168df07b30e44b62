"""A user's network in its manifest: shapes, names, parts, labels, tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cellar_proto.v1.manifest_pb2 import (
    MANY_TO_MANY_ALIGNED,
    MANY_TO_ONE,
    ROWS,
    SAMPLES,
    TEXT_BYTES,
    Manifest,
    StepSpec,
)
from cellar_proto.v1.tensor_pb2 import DataType
from torch import nn

from cellar_models.own.forms import Form
from cellar_models.own.node import kind_of
from cellar_models.own.stepper import Stepper
from cellar_models.own.subject import Subject
from cellar_models.own.why import ExportError, Why

_DTYPES = {
    torch.float32: DataType.FLOAT32,
    torch.int64: DataType.INT64,
    torch.int16: DataType.INT16,
    torch.uint8: DataType.UINT8,
}


def input_spec(stepper: Stepper, names: Sequence[str]) -> StepSpec:
    subject = stepper.subject
    shape = tuple(subject.example.shape[2:])
    if names and (not shape or shape[-1] != len(names)):
        raise ExportError(Why.LABELS, f"{len(names)} input names for inputs of shape {list(shape)}")
    return StepSpec(dtype=_DTYPES[subject.example.dtype], shape=shape, names=names, vocabulary=subject.vocabulary)


def output_spec(stepper: Stepper, names: Sequence[str]) -> StepSpec:
    assert stepper.subject.layout is not None
    shape = stepper.subject.layout.step
    if names and (not shape or shape[-1] != len(names)):
        raise ExportError(Why.LABELS, f"{len(names)} names for outputs of shape {list(shape)}")
    return StepSpec(dtype=DataType.FLOAT32, shape=shape, names=names)


def fill_manifest(
    manifest: Manifest,
    entry: Path,
    stepper: Stepper,
    labels: Sequence[str],
    tokenizer: Any,
    pcm: bool,
    input_names: Sequence[str],
    output_names: Sequence[str],
    description: str,
    licence: str,
    data: str,
) -> None:
    subject, layout = stepper.subject, stepper.subject.layout
    assert layout is not None
    is_aligned = layout.time_axis is not None or bool(layout.flat)
    manifest.mode = MANY_TO_MANY_ALIGNED if is_aligned else MANY_TO_ONE
    manifest.description = description or f"{type(subject.module).__name__}, exported from PyTorch."
    manifest.input.CopyFrom(input_spec(stepper, input_names))
    manifest.output.CopyFrom(output_spec(stepper, output_names or labels))
    manifest.position_unit = ROWS
    manifest.parts.extend(stepper.state_parts())
    manifest.is_whole_only = stepper.form is Form.WHOLE
    manifest.architecture = _architecture(subject.module)
    manifest.licence, manifest.data = licence, data
    if bool(stepper.start.any()):
        manifest.start_file = "start.f32"
        (entry / "start.f32").write_bytes(stepper.start.numpy().astype("<f4").tobytes())
    if labels:
        _check_labels(stepper, labels)
        manifest.labels.extend(labels)
    if pcm:
        if subject.example.dtype != torch.int16 or subject.example.dim() != 3 or stepper.form is Form.WHOLE:
            raise ExportError(Why.SOUND, f"{list(subject.example.shape)} {subject.example.dtype}: {Why.SOUND.value}")
        manifest.position_unit = SAMPLES
    if tokenizer is not None:
        text = _tokenizer_json(tokenizer, subject)
        (entry / "tokenizer.json").write_text(text, "utf-8")
        manifest.text.tokenizer_file = "tokenizer.json"
        manifest.position_unit = TEXT_BYTES


def _check_labels(stepper: Stepper, labels: Sequence[str]) -> None:
    with torch.no_grad():
        x = stepper.subject.sample(3, 4, 6)
        y, _ = stepper.over(x, stepper.start.repeat(3, 1))
    if not torch.allclose(y.sum(-1), torch.ones(()), atol=1e-3) or bool((y < 0).any()):
        raise ExportError(Why.LABELS, "labels name probabilities, and the output is none: pass softmax=True")


def _tokenizer_json(tokenizer: Any, subject: Subject) -> str:
    """The tokenizer as JSON; ExportError TOKENIZER where text that comes word by word gets other ids."""
    from tokenizers import Tokenizer

    try:
        made = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_file(os.fspath(tokenizer))
    except Exception as error:
        raise ExportError(Why.TOKENIZER, f"the tokenizer file cannot be read: {error}") from None
    if subject.example.dtype != torch.int64 or subject.example.dim() != 2:
        raise ExportError(Why.TOKENIZER, "text becomes ids: the network must take int64 [batch, time]")
    if subject.vocabulary and made.get_vocab_size() > subject.vocabulary:
        raise ExportError(
            Why.TOKENIZER, f"the tokenizer has {made.get_vocab_size()} ids, the embedding {subject.vocabulary}"
        )
    known = sorted(word for word in made.get_vocab() if word.isalpha())
    words = [*known[:: max(1, len(known) // 40)][:40], "two", "words,", "unbelievably"]
    whole = made.encode(" ".join(words), add_special_tokens=False).ids
    one_by_one = [i for word in words for i in made.encode(word, add_special_tokens=False).ids]
    if whole != one_by_one:
        raise ExportError(
            Why.TOKENIZER,
            "text arrives word by word, and this tokenizer gives a text other ids than its words one by one "
            "(a byte-level one needs add_prefix_space=True)",
        )
    return made.to_str()


def _architecture(module: nn.Module) -> str:
    found = []
    for each in module.modules():
        kind = kind_of(each)
        if kind and isinstance(each, nn.RNNBase):
            ways = ", bidirectional" if each.bidirectional else ""
            found.append(
                f"{kind.upper()}, {each.num_layers} layer{'s' * (each.num_layers > 1)} of {each.hidden_size}{ways}"
            )
        elif kind:
            found.append(f"{type(each).__name__} of {each.hidden_size}")
    return "; ".join(dict.fromkeys(found)) or type(module).__name__
