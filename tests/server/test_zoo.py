"""Model folders: what is wrong with one is said, and nothing else suffers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cellar_proto.v1.manifest_pb2 import Manifest, Prime
from cellar_server import zoo
from cellar_server.errors import CellarError
from cellar_server.runtime.base import StartupError
from cellar_server.runtime.onnx import check_provider
from cellar_server.sessions.states import model_sha256
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from tests.fakes.bench import reason_of
from tests.fakes.zoo import add_int8, read_manifest, write_counter, write_manifest


def test_a_good_folder_is_found_and_loaded(tmp_path: Path) -> None:
    write_counter(tmp_path)
    (entry,) = zoo.find(tmp_path)
    assert (entry.name, entry.version) == ("counter", 1)
    assert zoo.load(entry).manifest.state_size == 2


def prime_by_step(manifest: Manifest, **fields: object) -> Prime:
    """The step's graph takes in a condition that is a sequence."""
    manifest.prime.CopyFrom(Prime(graph=manifest.step, condition=manifest.input, is_recurrent=True, **fields))
    manifest.prime.graph.output = ""
    return manifest.prime


def test_the_steps_graph_may_be_the_primes(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    add_int8(entry)
    manifest = read_manifest(entry)
    prime_by_step(manifest)
    write_manifest(entry, manifest)
    model = zoo.load(zoo.find(tmp_path)[0])
    x, state = np.ones((3, 5, 2), np.float32), np.zeros((3, 2), np.float32)
    assert model.runtime.prime(x, state).tolist() == [[5.0, 5.0]] * 3
    assert model.manifest.prime.graph.file == "model.onnx"
    int8 = zoo.load(zoo.find(tmp_path)[0], precision="int8")
    assert int8.manifest.prime.graph.file == "model.int8.onnx"
    # of parity.min_rows 2: a lone row goes beside its twin
    assert int8.runtime.prime(x[:1], state[:1]).tolist() == [[5.0, 5.0]]
    assert int8.runtime.twin_steps > 0


def broken(change: Callable[[Manifest], object]) -> Callable[[Path], None]:
    def write(entry: Path) -> None:
        manifest = read_manifest(entry)
        change(manifest)
        write_manifest(entry, manifest)

    return write


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda entry: (entry / "manifest.json").write_text("{"), "Failed to load JSON"),
        (lambda entry: (entry / "manifest.json").write_text('{"format": 1, "nonsense": 2}'), "nonsense"),
        (lambda entry: (entry / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda entry: (entry / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda entry: (entry / "model.onnx").write_bytes(b"x"), "sha256"),
        (broken(lambda m: setattr(m, "format", 2)), "format 2"),
        (broken(lambda m: setattr(m, "name", "other")), "of other/1"),
        (broken(lambda m: m.sha256.clear()), "no entry for model.onnx"),
        (broken(lambda m: m.sha256.update({"../x": "0"})), "not a plain file name"),
        (broken(lambda m: setattr(m.parts[0], "offset", 1)), "does not follow"),
        (broken(lambda m: setattr(m, "state_size", 3)), "hold 2 numbers"),
        (broken(lambda m: setattr(m.step, "output", "z")), "no tensor 'z'"),
        (broken(lambda m: m.output.shape.append(3)), "y is"),
        (broken(lambda m: setattr(m, "precision", "int8")), "to be served in 'int8'"),
        (broken(lambda m: m.variants.add(precision="int8", step_file="other.onnx")), "no entry for other.onnx"),
        (broken(lambda m: m.variants.add(precision="int8")), "to be served"),
        (broken(lambda m: setattr(prime_by_step(m, max_steps=3), "is_recurrent", False)), "that is_recurrent"),
        (broken(lambda m: prime_by_step(m, is_prompt=True)), "int64 ids"),
        (broken(lambda m: prime_by_step(m).graph.ClearField("file")), "names no graph"),
    ],
)
def test_a_broken_folder_says_why(tmp_path: Path, breaking: Callable[[Path], object], message: str) -> None:
    breaking(write_counter(tmp_path))
    (entry,) = zoo.find(tmp_path)
    with pytest.raises(CellarError, match=message) as caught:
        zoo.load(entry)
    assert reason_of(caught.value) == "MODEL_BROKEN"


@pytest.mark.parametrize(
    ("asked", "by_manifest", "served"),
    [
        ("float32", "", "float32"),
        ("int8", "", "int8"),
        ("float32", "int8", "int8"),
        ("int8", "float32", "float32"),
    ],
)
def test_precision_is_the_manifests_choice_or_else_the_servers(
    tmp_path: Path, asked: str, by_manifest: str, served: str
) -> None:
    path = write_counter(tmp_path)
    add_int8(path)
    broken(lambda m: setattr(m, "precision", by_manifest))(path)
    (entry,) = zoo.find(tmp_path)
    model = zoo.load(entry, precision=asked)
    assert model.manifest.precision == served
    assert model.manifest.step.file == ("model.int8.onnx" if served == "int8" else "model.onnx")
    assert model.manifest.parity.min_rows == (2 if served == "int8" else 0)


def test_a_model_without_int8_is_served_in_float32(tmp_path: Path) -> None:
    write_counter(tmp_path)
    (entry,) = zoo.find(tmp_path)
    assert zoo.load(entry, precision="int8").manifest.precision == "float32"


def _speller(folder: Path, *, shape: list[int], vocabulary: int = 257, tail_bytes: int = 1) -> Path:
    """The counter's folder, said to take words that are spelt."""
    entry = write_counter(folder)
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(entry / "tokenizer.json"))
    manifest = read_manifest(entry)
    manifest.text.tokenizer_file, manifest.text.tail_bytes = "tokenizer.json", tail_bytes
    manifest.input.vocabulary = vocabulary
    manifest.input.shape[:] = shape
    manifest.sha256["tokenizer.json"] = hashlib.sha256((entry / "tokenizer.json").read_bytes()).hexdigest()
    write_manifest(entry, manifest)
    return entry


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [2], "vocabulary": 256}, "a spelt byte is up to 256; the graph takes 256"),
        ({"shape": [2], "tail_bytes": 2}, r"a step of the text is \(3,\)"),
        ({"shape": [2], "tail_bytes": 65}, "over 64"),
    ],
)
def test_a_speller_that_does_not_fit_its_graph_says_why(tmp_path: Path, fields: dict, message: str) -> None:
    _speller(tmp_path, **fields)
    (entry,) = zoo.find(tmp_path)
    with pytest.raises(CellarError, match=message) as caught:
        zoo.load(entry)
    assert reason_of(caught.value) == "MODEL_BROKEN"


def test_a_state_fits_the_precision_that_computed_it_and_no_other(tmp_path: Path) -> None:
    path = write_counter(tmp_path)
    (entry,) = zoo.find(tmp_path)
    before = model_sha256(zoo.load(entry).manifest)
    add_int8(path)
    assert model_sha256(zoo.load(entry).manifest) == before
    assert model_sha256(zoo.load(entry, precision="int8").manifest) != before


def test_a_fixed_time_axis_is_refused(tmp_path: Path) -> None:
    write_counter(tmp_path, time=5)
    (entry,) = zoo.find(tmp_path)
    with pytest.raises(CellarError, match=r"axis 1 of 'x' in model\.onnx is fixed at 5"):
        zoo.load(entry)


def test_no_folder_and_no_provider_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="does not exist"):
        zoo.find(tmp_path / "nowhere")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(StartupError, match="install onnxruntime-gpu"):
        check_provider("cuda")


def test_the_cuda_provider_gives_the_same_sums(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    write_counter(tmp_path)
    (entry,) = zoo.find(tmp_path)
    assert zoo.load(entry, provider="cuda").runtime.output_shape == (2,)
