"""`cellar-models validate`: other precisions of an entry, and every form: primed, text, PCM, whole only."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import describe, sentiment  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.network import Network  # noqa: E402
from cellar_models.own.drawn import inputs  # noqa: E402
from cellar_models.own.validate import validate  # noqa: E402
from cellar_models.recurrent import Recurrent  # noqa: E402
from cellar_models.variants import add_int8  # noqa: E402
from cellar_proto.v1.manifest_pb2 import EMISSIONS, MANY_TO_ONE, ONE_TO_MANY, SAMPLES, Manifest, StepSpec  # noqa: E402
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT16, INT64  # noqa: E402

from tests.fakes.zoo import read_manifest, write_counter, write_manifest  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
INT8 = {"graph", "from float32", "rows and cuts", "round trip", "batch-mates", "speed"}


def lines_of(entry: Path) -> dict[str, tuple[str, str]]:
    return {check: (verdict, text) for verdict, check, text in validate(entry).lines}


def refuted(entry: Path) -> dict[str, str]:
    return {check: text for check, (verdict, text) in lines_of(entry).items() if verdict == "NO"}


def proved_int8(entry: Path) -> set[str]:
    return {check[6:] for check, (verdict, _) in lines_of(entry).items() if verdict == "yes" and check[:5] == "int8:"}


def rehash(entry: Path, file: str) -> None:
    manifest = read_manifest(entry)
    manifest.sha256[file] = hashlib.sha256((entry / file).read_bytes()).hexdigest()
    write_manifest(entry, manifest)


def add_variant(entry: Path, before: list[onnx.NodeProto], tolerance: float = 0.1) -> None:
    """An "int8" whose graph is the entry's with `before` making `moved` of x, which goes in in x's place."""
    model = onnx.load(entry / "model.onnx")
    for node in model.graph.node:
        node.input[:] = ["moved" if name == "x" else name for name in node.input]
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *kept])
    for name, value in (("sixty_four", 64.0), ("nine", 9.0)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    onnx.checker.check_model(model)
    onnx.save(model, entry / "model.int8.onnx")
    manifest = read_manifest(entry)
    variant = manifest.variants.add(precision="int8", step_file="model.int8.onnx")
    variant.parity.tolerance, variant.parity.is_bit_identical = tolerance, True
    write_manifest(entry, manifest)
    rehash(entry, "model.int8.onnx")


def rounded() -> list[onnx.NodeProto]:
    """x in multiples of 1/64, whose sums are exact."""
    return [
        helper.make_node("Mul", ["x", "sixty_four"], ["large"]),
        helper.make_node("Round", ["large"], ["whole"]),
        helper.make_node("Div", ["whole", "sixty_four"], ["moved"]),
    ]


def test_a_near_variant_is_proved(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    add_variant(entry, rounded())
    found = validate(entry)
    assert found.is_good, str(found)
    assert proved_int8(entry) == INT8
    far = re.fullmatch(r"within (.*) of the largest output .* \(bound 0.1\)", lines_of(entry)["int8: from float32"][1])
    assert 1e-4 < float(far[1]) < 1e-2


def test_a_variant_farther_than_its_bound_is_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    add_variant(entry, rounded(), tolerance=1e-4)
    assert list(refuted(entry)) == ["int8: from float32"]
    assert "the manifest's bound is 0.0001" in refuted(entry)["int8: from float32"]


def test_a_variant_without_a_bound_is_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    add_variant(entry, rounded(), tolerance=0.0)
    assert list(refuted(entry)) == ["int8: from float32"]
    assert "states no bound" in refuted(entry)["int8: from float32"]


def test_one_scale_for_the_whole_run_is_found(tmp_path: Path) -> None:
    """As ONNX Runtime's dynamic quantisation has it: near float32, and moved by whoever is in the batch."""
    entry = write_counter(tmp_path)
    add_variant(
        entry,
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["whole", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["moved"]),
        ],
    )
    found = refuted(entry)
    assert set(found) == {"int8: rows and cuts", "int8: batch-mates"}
    assert "promises the same bits" in found["int8: rows and cuts"]
    manifest = read_manifest(entry)
    manifest.variants[0].parity.is_bit_identical = False
    write_manifest(entry, manifest)
    assert set(refuted(entry)) == {"int8: batch-mates"}


def test_a_variant_with_other_tensors_or_no_hash_is_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    add_variant(entry, rounded())
    model = onnx.load(entry / "model.int8.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(model, entry / "model.int8.onnx")
    rehash(entry, "model.int8.onnx")
    assert refuted(entry) == {"int8: graph": "axis 1 of 'x' is fixed at 4; it must be open"}
    manifest = read_manifest(entry)
    del manifest.sha256["model.int8.onnx"]
    write_manifest(entry, manifest)
    assert refuted(entry) == {"files and hashes": "sha256 has no entry for model.int8.onnx"}


class Sound(Network):
    """PCM frames in, a running answer out."""

    name = "sound"

    def __init__(self) -> None:
        super().__init__()
        self.cells = Recurrent("gru", 8, 6)
        self.head = torch.nn.Linear(6, 2)
        self.state_size = self.cells.state_size

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = self.cells(x.float() / 8192.0, state)
        return self.head(y), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from cellar_models import oracle

        y, state = oracle.recurrent(self.cells, x / 8192.0, state)
        return oracle.linear(self.head, y), state

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(-8192, 8192, (batch, time, 8)).astype(np.int16)

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.mode, manifest.position_unit = MANY_TO_ONE, SAMPLES
        manifest.input.CopyFrom(StepSpec(dtype=INT16, shape=[8]))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[2]))
        manifest.parts.extend(self.cells.parts("gru"))


FORMS = {
    "sound": (Sound, "PCM, 8 samples a step"),
    "sentiment": (lambda: sentiment.Sentiment(["[UNK]", "a", "b", "c"], 4, 6), "text, 4 ids, 2 labels, 2 output names"),
    "describe": (
        lambda: describe.Describe(
            ["<begin>", "<end>", "<unk>", "is", "<name>"], ["act=inform", "slot=name"], ["name"], [], 6, 4
        ),
        "generation, 5 ids",
    ),
}


@pytest.mark.parametrize("name", sorted(FORMS))
def test_int8_of_every_form_is_proved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, codecs = FORMS[name]
    network = make()
    entry = export(network, tmp_path)
    add_int8(network, entry)
    found = validate(entry)
    assert found.is_good, str(found)
    assert proved_int8(entry) == INT8
    assert lines_of(entry)["codecs and labels"] == ("yes", codecs)


def whole_only(folder: Path) -> Path:
    """y = x and the sum of all steps: it looks ahead."""
    entry = write_counter(folder)
    model = onnx.load(entry / "model.onnx")
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1),
            helper.make_node("Add", ["x", "total"], ["y"]),
            helper.make_node("Identity", ["state"], ["next_state"]),
        ]
    )
    onnx.save(model, entry / "model.onnx")
    manifest = read_manifest(entry)
    manifest.is_whole_only = True
    write_manifest(entry, manifest)
    rehash(entry, "model.onnx")
    return entry


def test_int8_of_whole_sequences_is_proved(tmp_path: Path) -> None:
    entry = whole_only(tmp_path)
    add_variant(entry, rounded())
    found = validate(entry)
    assert found.is_good, str(found)
    assert proved_int8(entry) == INT8 - {"round trip"}
    manifest = read_manifest(entry)
    manifest.is_whole_only = False
    write_manifest(entry, manifest)
    assert {"rows and cuts", "int8: rows and cuts"} <= set(refuted(entry))


def primed(folder: Path, nodes: list[onnx.NodeProto], *, time: object = "time") -> Path:
    """A generator over 3 ids whose recurrent prime takes ids [batch, time]; `nodes` make the primed rows of `hot`."""
    entry = write_counter(folder)
    value = helper.make_tensor_value_info
    step = onnx.load(entry / "model.onnx")
    del step.graph.node[:], step.graph.input[:], step.graph.output[:]
    step.graph.input.extend(
        [value("x", TensorProto.INT64, ["batch", "time"]), value("state", TensorProto.FLOAT, ["batch", 3])]
    )
    step.graph.output.extend(
        [value("y", TensorProto.FLOAT, ["batch", "time", 3]), value("next_state", TensorProto.FLOAT, ["batch", 3])]
    )
    constants = [
        helper.make_tensor("three", TensorProto.INT64, [], [3]),
        helper.make_tensor("values", TensorProto.FLOAT, [2], [0.0, 1.0]),
    ]
    counted = [helper.make_node("OneHot", ["x", "three", "values"], ["hot"])]
    step.graph.initializer.extend(constants)
    step.graph.node.extend(
        [
            *counted,
            helper.make_node("CumSum", ["hot", "one"], ["sums"]),
            helper.make_node("Unsqueeze", ["state", "axis"], ["before"]),
            helper.make_node("Add", ["sums", "before"], ["y"]),
            helper.make_node("Gather", ["y", "last"], ["next_state"], axis=1),
        ]
    )
    onnx.checker.check_model(step)
    onnx.save(step, entry / "model.onnx")
    graph = helper.make_graph(
        [*counted, *nodes],
        "prime",
        [value("x", TensorProto.INT64, ["batch", time]), value("state", TensorProto.FLOAT, ["batch", 3])],
        [value("next_state", TensorProto.FLOAT, ["batch", 3])],
        [*constants, *(helper.make_tensor(n, TensorProto.INT64, [1], [k]) for k, n in enumerate(("zero", "axis")))],
    )
    prime = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(prime)
    onnx.save(prime, entry / "prime.onnx")
    (entry / "vocabulary.json").write_text(json.dumps(["<end>", "a", "b"]))
    manifest = read_manifest(entry)
    manifest.mode, manifest.position_unit, manifest.state_size = ONE_TO_MANY, EMISSIONS, 3
    manifest.parts[0].shape[0] = 3
    manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=3))
    manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[3]))
    manifest.generation.vocabulary_file, manifest.generation.begin_id = "vocabulary.json", 1
    manifest.prime.is_recurrent = True
    manifest.prime.condition.CopyFrom(StepSpec(dtype=INT64, vocabulary=3))
    manifest.prime.graph.file, manifest.prime.graph.input = "prime.onnx", "x"
    manifest.prime.graph.state_input, manifest.prime.graph.state_output = "state", "next_state"
    write_manifest(entry, manifest)
    for file in ("model.onnx", "prime.onnx", "vocabulary.json"):
        rehash(entry, file)
    return entry


SUMMED = [
    helper.make_node("ReduceSum", ["hot", "axis"], ["total"], keepdims=0),
    helper.make_node("Add", ["state", "total"], ["next_state"]),
]


def test_a_recurrent_prime_is_proved(tmp_path: Path) -> None:
    entry = primed(tmp_path, SUMMED)
    found = validate(entry)
    assert found.is_good, str(found)
    assert "the same bits at 1, 2, 7, 64, 256 rows, whole and in cuts of 1 to 16 steps" in lines_of(entry)["prime"][1]
    assert lines_of(entry)["codecs and labels"] == ("yes", "generation, 3 ids")


def test_a_prime_that_forgets_what_it_took_in_is_found(tmp_path: Path) -> None:
    forgets = [SUMMED[0], helper.make_node("Identity", ["total"], ["next_state"])]
    assert "cuts of 1 steps: primed states differ" in refuted(primed(tmp_path, forgets))["prime"]


def test_a_prime_whose_rows_see_each_other_is_found(tmp_path: Path) -> None:
    mixed = [
        SUMMED[0],
        helper.make_node("ReduceMax", ["total"], ["most"], keepdims=1),
        helper.make_node("Add", ["state", "most"], ["next_state"]),
    ]
    assert "primed states differ" in refuted(primed(tmp_path, mixed))["prime"]


def test_a_prime_that_lets_nan_through_is_found(tmp_path: Path) -> None:
    """Its rows meet, in what adds nothing while all are finite."""
    leaking = [
        SUMMED[0],
        helper.make_node("Add", ["state", "total"], ["summed"]),
        helper.make_node("Sub", ["state", "state"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing", "zero"], ["of_all"], keepdims=1),
        helper.make_node("Add", ["summed", "of_all"], ["next_state"]),
    ]
    assert "whose state is nan changes the other rows" in refuted(primed(tmp_path, leaking))["prime"]


def test_words_are_spelled_with_bytes(tmp_path: Path) -> None:
    """A text step of several numbers is a word's id and bytes, 0 to 256, whatever the vocabulary."""
    manifest = Manifest(input=StepSpec(dtype=INT64, shape=[4], vocabulary=5000))
    manifest.text.tokenizer_file = "tokenizer.json"
    x = inputs(tmp_path, manifest, np.random.default_rng(0))
    assert x.shape == (256, 16, 4)
    assert 4000 < x[..., 0].max() < 5000
    assert x[..., 1:].max() == 256
    assert x.min() == 0


def test_a_prime_of_fixed_length_is_found(tmp_path: Path) -> None:
    assert refuted(primed(tmp_path, SUMMED, time=16))["prime"] == "axis 1 of 'x' is fixed at 16; it must be open"


def test_ids_that_do_not_fit_are_found(tmp_path: Path) -> None:
    entry = primed(tmp_path, SUMMED)
    manifest = read_manifest(entry)
    manifest.generation.end_id = 3
    write_manifest(entry, manifest)
    assert refuted(entry) == {"codecs and labels": "generation.end_id 3 is no id of the 3 emitted"}
    (entry / "vocabulary.json").write_text(json.dumps(["<end>", "a"]))
    rehash(entry, "vocabulary.json")
    assert refuted(entry) == {"codecs and labels": "vocabulary.json has 2 texts for 3 ids"}


def test_samples_are_what_an_entry_is_tried_with(tmp_path: Path) -> None:
    """A variant that is exact up to 9 only: random numbers never show it, the entry's own rows do."""
    entry = write_counter(tmp_path)
    add_variant(entry, [helper.make_node("Clip", ["x", "", "nine"], ["moved"])])
    manifest = read_manifest(entry)
    manifest.variants[0].parity.is_bit_identical = False
    manifest.input.names.extend(["a", "b"])
    write_manifest(entry, manifest)
    assert refuted(entry) == {}
    (entry / "samples").mkdir()
    (entry / "samples" / "rows.csv").write_text("b,a,label\n" + "20,30,x\n" * 5)
    assert list(refuted(entry)) == ["int8: from float32"]
