"""A user's own network: exported and served step by step as PyTorch runs it whole, or refused with the named reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

import cellar_models  # noqa: E402
from cellar_client import Client  # noqa: E402
from cellar_models.own.validate import validate  # noqa: E402
from cellar_models.own.why import ExportError, Why  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest  # noqa: E402
from cellar_server.config import Config  # noqa: E402
from google.protobuf import json_format  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from tests.contract.conftest import Running  # noqa: E402
from tests.models.shapes import SHAPES, TRUTHS, LastHidden, LastStep, LayerNormGRU, Plain, floats, ids  # noqa: E402

FORMS = ("FOLDED", "LOOP", "FED", "GIVEN", "WHOLE")
# Exported and served in every run; the others with the slow tests.
QUICK = [
    "plain", "packs-to-one", "normalised-cells", "learned-start", "projects", "bidirectional", "causal-convolution",
    "own-recurrence",
]  # fmt: skip
SLOW = [name for name, shape in SHAPES.items() if shape[3] in FORMS and name not in QUICK]
REFUSED = [name for name, shape in SHAPES.items() if shape[3] not in FORMS]
pytestmark = pytest.mark.filterwarnings(
    # said by PyTorch of the user's own network, when it is run as it is
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning",
    # TorchScript works and is said to be on its way out
    "ignore:.*torch.jit.*:DeprecationWarning",
)


def made(name: str) -> tuple[nn.Module, Any, dict[str, Any], str]:
    torch.manual_seed(3)
    make, example, options, outcome = SHAPES[name]
    options = {**options, **({"state": options["state"]()} if "state" in options else {})}
    return make(), example(), options, outcome


def exported(name: str, folder: Path) -> tuple[nn.Module, cellar_models.Exported]:
    network, example, options, _ = made(name)
    return network, cellar_models.export(network, folder, name=name, example=example, **options)


def read(folder: Path) -> Manifest:
    return json_format.Parse((folder / "manifest.json").read_text(), Manifest())


class Zoo:
    """Networks as they were, and a server of what was exported of them."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.entries = {name: exported(name, folder) for name in names}
        self.running = Running(Config(listen="127.0.0.1:0", models=folder, drain_s=5, max_sessions=256))

    def check(self, name: str) -> None:
        """Two sessions in turn, a step at a time and then a chunk, against PyTorch on the whole sequences."""
        network, entry = self.entries[name]
        assert entry.form.name == SHAPES[name][3]
        x = _inputs(name, 2, 7)
        with torch.no_grad():
            truth = TRUTHS.get(name, lambda net, x: net(x))(network.eval(), x).numpy()
        with Client(self.running.address) as client:
            if entry.form.name == "WHOLE":
                for row in range(2):
                    found = np.asarray(client.predict(name, x[row].numpy(), all_emissions=True))
                    np.testing.assert_allclose(found, truth[row], atol=1e-5 * max(1, np.abs(truth).max()))
                return
            with client.session(name) as one, client.session(name) as other:
                for t in range(4):
                    for row, session in enumerate((one, other)):
                        found = np.asarray(session.step(x[row, t].numpy()))
                        self._same(found.reshape(truth[row, t].shape), truth[row, t], truth)
                for row, session in enumerate((one, other)):
                    found = np.asarray(session.step(x[row, 4:].numpy()))
                    many = truth[row, 4:] if len(found) > 1 else truth[row, -1:]
                    self._same(found.reshape(many.shape), many, truth)

    @staticmethod
    def _same(found: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(scale).max())


def _inputs(name: str, rows: int, steps: int) -> Any:
    torch.manual_seed(11)
    example = SHAPES[name][1]()
    example = example[0] if isinstance(example, tuple) else example
    shape = (rows, steps, *example.shape[1 if SHAPES[name][2].get("single_step") else 2 :])
    if example.dtype == torch.int64:
        return torch.randint(0, 11, shape)
    return torch.randn(shape) if example.dtype == torch.float32 else torch.randint(-9000, 9000, shape).to(example.dtype)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    zoo = Zoo(tmp_path_factory.mktemp("quick"), QUICK)
    yield zoo
    zoo.running.stop()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    zoo = Zoo(tmp_path_factory.mktemp("slow"), SLOW)
    yield zoo
    zoo.running.stop()


@pytest.mark.parametrize("name", QUICK)
def test_a_network_is_served_as_pytorch_runs_it(name: str, quick: Zoo) -> None:
    quick.check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_other_network_is_too(name: str, slow: Zoo) -> None:
    slow.check(name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    network, example, options, reason = made(name)
    with pytest.raises(ExportError) as refused:
        cellar_models.export(network, tmp_path, name="pump", example=example, **options)
    assert refused.value.why is Why[reason]
    assert str(refused.value).startswith(f"{reason}: ")
    assert not list(tmp_path.iterdir())


# Reasons of what was asked, not of the network: tested below and in test_onnx_import.py.
OF_THE_QUESTION = {"EXAMPLE", "NAME", "SCRIPTED", "SEVERAL_INPUTS", "STATE", "PARITY", "LABELS", "SOUND", "TOKENIZER"}
OF_A_FILE = {"PAIRS", "AXES", "FIXED"}


def test_every_reason_is_tested_and_says_something_of_its_own() -> None:
    assert len({why.value for why in Why}) == len(Why)
    assert {SHAPES[name][3] for name in REFUSED} | OF_THE_QUESTION | OF_A_FILE == {why.name for why in Why}


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("centred-convolution", "`conv`"),
        ("self-attention", "`attention` (MultiheadAttention)"),
        ("attention", "Attention.forward computes softmax"),
        ("averages", "Averages.forward computes mean"),
        ("encoder-decoder", "`decoder"),
        ("backwards", "computes flip"),
    ],
)
def test_a_refusal_names_the_culprit(name: str, culprit: str, tmp_path: Path) -> None:
    network, example, options, _ = made(name)
    with pytest.raises(ExportError) as refused:
        cellar_models.export(network, tmp_path, name="pump", example=example, **options)
    assert culprit in str(refused.value)


def test_an_entry_holds_what_it_promises(quick: Zoo) -> None:
    _, entry = quick.entries["learned-start"]
    manifest = read(entry.folder)
    assert [part.name for part in manifest.parts] == ["lstm.0.h", "lstm.0.c", "lstm.1.h", "lstm.1.c"]
    assert manifest.start_file == "start.f32"
    assert (
        set(manifest.sha256)
        == {"model.onnx", "model.pt", "start.f32"}
        == {path.name for path in entry.folder.iterdir()} - {"manifest.json", "CARD.md"}
    )
    assert 0 < manifest.parity.max_relative_error < 1e-5
    assert "lstm.1.c" in (entry.folder / "CARD.md").read_text()
    script = torch.jit.load(str(entry.folder / "model.pt"))
    x, start = torch.randn(2, 3, 4), torch.from_numpy(np.fromfile(entry.folder / "start.f32", "<f4")).repeat(2, 1)
    network, _ = quick.entries["learned-start"]
    with torch.no_grad():
        assert torch.allclose(script(x, start)[0], network(x), atol=1e-5)


def test_one_onnx_node_a_layer_where_the_layers_are_plain(quick: Zoo) -> None:
    import onnx

    def kinds(name: str) -> list[str]:
        return [node.op_type for node in onnx.load(quick.entries[name][1].folder / "model.onnx").graph.node]

    for name in ("plain", "learned-start"):
        assert kinds(name).count("LSTM") == 2
        assert "Scan" not in kinds(name)
    assert kinds("projects") == ["Scan"]


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = Plain().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keys = set(network.lstm.__dict__)
    cellar_models.export(network, tmp_path, name="pump", example=floats())
    assert network.training
    assert set(network.lstm.__dict__) == keys
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    again = cellar_models.export(network, tmp_path, name="pump", example=floats())
    assert again.folder == tmp_path / "pump" / "2"
    assert any("evaluation mode" in note for note in again.notes)


@pytest.mark.parametrize(
    ("example", "options", "why"),
    [
        (torch.zeros(4), {}, Why.EXAMPLE),
        ("x", {}, Why.EXAMPLE),
        ((torch.zeros(2, 5, 4), torch.zeros(2, 5, 3)), {}, Why.SEVERAL_INPUTS),
        (torch.zeros(2, 5, 4), {"name": "../pump"}, Why.NAME),
        (torch.zeros(2, 5, 4), {"labels": ["a", "b", "c"]}, Why.LABELS),
        (torch.zeros(2, 5, 4), {"softmax": True, "labels": ["a"]}, Why.LABELS),
        (torch.zeros(2, 5, 4), {"input_names": ["a"]}, Why.LABELS),
        (torch.zeros(2, 5, 4), {"tokenizer": "missing.json"}, Why.TOKENIZER),
        (torch.zeros(2, 5, 4), {"output": 3}, Why.SEVERAL_OUTPUTS),
        (torch.zeros(2, 5, 4), {"state": torch.zeros(3)}, Why.STATE),
        (torch.zeros(2, 5, 7), {}, Why.FORWARD_FAILED),
    ],
)
def test_what_was_asked_wrongly_is_said(example: Any, options: dict[str, Any], why: Why, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refused:
        cellar_models.export(Plain(), tmp_path, **{"name": "pump", "example": example, **options})
    assert refused.value.why is why
    assert not list(tmp_path.iterdir())


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(Plain().eval(), floats())
    with pytest.raises(ExportError, match=r"SCRIPTED: .*export the module that it was made from"):
        cellar_models.export(script, tmp_path, name="pump", example=floats())
    with pytest.raises(ExportError, match="SCRIPTED"):
        cellar_models.export(lambda x: x, tmp_path, name="pump", example=floats())


def test_text_goes_in_and_a_label_comes_out(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    pieces = ["[UNK]", "good", "bad", "un", "##believ", "##ably", "film", "the"]
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    network = LastHidden()
    entry = cellar_models.export(
        network, tmp_path, name="judge", example=ids(8)(), tokenizer=tokenizer, softmax=True, labels=["bad", "good"]
    )
    manifest = read(entry.folder)
    assert manifest.text.tokenizer_file == "tokenizer.json"
    running = Running(Config(listen="127.0.0.1:0", models=tmp_path, drain_s=5, max_sessions=16))
    try:
        with torch.no_grad():
            truth = torch.softmax(network.eval()(torch.tensor([[7, 3, 4, 5, 1, 6]])), -1)[0]
        with Client(running.address) as client:
            answer = client.predict("judge", "the unbelievably good film")
            assert answer.label == ["bad", "good"][int(truth.argmax())]
            np.testing.assert_allclose(np.asarray(answer).reshape(-1), truth, atol=1e-5)
            with client.session("judge") as session:
                # the chunk's end cuts a word piece in two: it waits in the session for its rest
                session.step("the unbel")
                session.step("ievably go")
                last = session.step("od film ")
            np.testing.assert_allclose(np.asarray(last).reshape(-1, 2)[-1], truth, atol=1e-5)
    finally:
        running.stop()
    small = LastHidden()
    small.embedding = nn.Embedding(4, 5)
    with pytest.raises(ExportError, match="TOKENIZER: the tokenizer has 8 ids, the embedding 4"):
        cellar_models.export(small, tmp_path, name="small", example=ids(4)(), tokenizer=tokenizer)


def test_a_tokenizer_that_looks_across_words_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    letters = {chr(ord("a") + i): i for i in range(14)} | {"Ġ": 14, "ab": 15, "cd": 16}
    tokenizer = Tokenizer(BPE(letters, [("a", "b"), ("c", "d")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(ExportError, match="TOKENIZER: text arrives word by word"):
        cellar_models.export(LastHidden(), tmp_path, name="judge", example=ids(20)(), tokenizer=tokenizer)


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellar_models.own import entry, graph

    def wrong(stepper: Any, path: Path) -> None:
        with torch.no_grad():
            stepper.module.head.bias += 0.01
            graph.write_onnx(stepper, path)
            stepper.module.head.bias -= 0.01

    monkeypatch.setattr(entry, "write_onnx", wrong)
    with pytest.raises(ExportError, match="PARITY: as an ONNX graph: the network in PyTorch: outputs differ"):
        cellar_models.export(LayerNormGRU(), tmp_path, name="pump", example=floats())
    assert not list(tmp_path.iterdir())


def test_labels_need_probabilities_and_get_them(tmp_path: Path) -> None:
    entry = cellar_models.export(LastStep(), tmp_path, name="pump", example=floats(), labels=["a", "b", "c"])
    manifest = read(entry.folder)
    assert list(manifest.labels) == list(manifest.output.names) == ["a", "b", "c"]


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    """A server that has the network of PCM frames of 16 samples as "ear"."""
    folder = tmp_path_factory.mktemp("ear")
    torch.manual_seed(3)
    network, example, _, _ = made("pcm")
    entry = cellar_models.export(network, folder, name="ear", example=example, pcm=True)
    assert validate(entry.folder).is_good
    config = Config(listen="127.0.0.1:0", transport=transport, models=folder, drain_s=5, max_sessions=64)
    running = Running(config)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def listening(hearing: Running) -> Iterator[Client]:
    with Client(hearing.address) as client:
        yield client


@settings(max_examples=20)
@given(st.integers(16, 200), st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_any_chunking_of_sound_gives_the_same_answers(listening: Client, num_samples: int, sizes: list[int]) -> None:
    sound = np.random.default_rng(num_samples).integers(-9000, 9000, num_samples).astype(np.int16)
    whole = np.asarray(listening.predict("ear", sound, all_emissions=True))
    assert len(whole) == num_samples // 16
    with listening.session("ear") as session:
        at, last, halved = 0, [], None
        while at < num_samples:
            size = sizes[len(last) % len(sizes)]
            answer = np.asarray(session.step(sound[at : at + size]))
            at = min(at + size, num_samples)
            assert session.position == at
            last.append(answer.reshape(-1, 2))
            if halved is None and at >= num_samples // 2:
                halved = at, session.fork()
        # many-to-one: a chunk answers with its newest emission, one that fills no frame with none
        np.testing.assert_allclose([each[-1] for each in last if len(each)][-1], whole[-1], atol=1e-6)
        assert halved is not None
        with halved[1] as fork:  # what is held back goes with a fork
            rest = np.asarray(fork.step(sound[halved[0] :])) if halved[0] < num_samples else np.zeros(0)
            if rest.size:
                np.testing.assert_allclose(rest.reshape(-1, 2)[-1], whole[-1], atol=1e-6)


def test_sound_that_fills_no_frame_is_no_sequence(listening: Client) -> None:
    from cellar_client import CellarError

    with pytest.raises(CellarError, match="shorter than a frame"):
        listening.predict("ear", np.zeros(15, np.int16))
    with listening.session("ear") as session:
        assert np.asarray(session.step(np.zeros(15, np.int16))).size == 0
        assert np.asarray(session.step(np.int16(0))).size == 2


def test_sound_needs_frames(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="SOUND"):
        cellar_models.export(Plain(), tmp_path, name="ear", example=floats(), pcm=True)


def test_sound_over_the_open_inference_protocol(hearing: Running, listening: Client) -> None:
    import tritonclient.grpc as tritonclient

    sound = np.random.default_rng(0).integers(-9000, 9000, 100).astype(np.int16)
    whole = np.asarray(listening.predict("ear", sound))
    with tritonclient.InferenceServerClient(hearing.address) as triton:
        assert list(triton.get_model_metadata("ear").inputs[0].shape) == [-1, -1]

        def ask(part: np.ndarray, **options: Any) -> np.ndarray:
            given = tritonclient.InferInput("x", [1, len(part)], "INT16")
            given.set_data_from_numpy(part[None])
            return triton.infer("ear", [given], **options).as_numpy("y")

        np.testing.assert_allclose(ask(sound)[0], whole, atol=1e-6)
        ask(sound[:37], sequence_id=7, sequence_start=True)
        last = ask(sound[37:], sequence_id=7, sequence_end=True)
        np.testing.assert_allclose(last.reshape(-1, 2)[-1], whole, atol=1e-6)
