"""chars-en and chars-ru, many-to-many aligned and one-to-many: the next character, scored while text comes in or drawn.

An LSTM language model over characters (Graves, 2013), trained by backpropagation through time over pieces of a long
text with the state carried from piece to piece; recurrent weights are dropped as in the AWD-LSTM (Merity et al., 2018).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, TEXT_BYTES, Generation, Graph, Manifest, Prime, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, dropout, nll_loss

from cellar_models import oracle
from cellar_models.data import read
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

UNKNOWN = 0
BATCH, STEPS = 32, 100


@dataclass(frozen=True)
class Language:
    """What one model of this file is made of: texts as (file, sha256), the last of which is divided 90 to 10."""

    name: str
    dataset: str
    texts: tuple[tuple[str, str], ...]
    num_epochs: int
    dropout: float
    ngram_order: int
    ngram_nats: float
    published: tuple[tuple[str, float], ...]
    description: str
    licence: str
    source: str
    notes: str = ""


ENGLISH = Language(
    name="chars-en",
    dataset="charlm_shakespeare",
    texts=(("input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),),
    num_epochs=24,
    dropout=0.25,
    ngram_order=5,
    ngram_nats=1.669,
    published=(("6-layer transformer, published (nanoGPT)", 1.4697), ("small transformer, published (nanoGPT)", 1.88)),
    description="The next character of Shakespeare's plays: scores while text comes in, or text from a prompt.",
    licence="Public domain (text); Apache-2.0 (weights)",
    source="tinyshakespeare: W. Shakespeare, selected by A. Karpathy",
)
RUSSIAN = Language(
    name="chars-ru",
    dataset="charlm_russian",
    texts=(
        ("Pushkin_ArapPetraVelikogo.txt", "c65730a930ce89b686aa21ff136e69b04383c8cb52c33f60728d6250e0b821a0"),
        ("Pushkin_CapitanskaaDochka.txt", "61bf01bfa515c557a09b338fdb0d7dd787236a179e34a857cead619710467a2d"),
        ("Pushkin_Dubrovsky.txt", "6c8c47929299853ae93ad0ff6265d5fe3c29497999623785d8169b2f8b052c65"),
        (
            "Pushkin_PovestiPokoynogoIvanaPetrovichaBelkina.txt",
            "a98cf90fe40e198125fb85d059f36be255c8fa06bf758bccba2361e0417ae034",
        ),
        ("Tolstoi_AnnaKarenina.txt", "cabe77daf21ee5614a2766c1413afa92fc1c1e86a90235b5468550fa196a0147"),
    ),
    num_epochs=12,
    dropout=0.12,
    ngram_order=6,
    ngram_nats=1.462,
    published=(),
    description="The next character of Russian prose: scores while text comes in, or text from a prompt.",
    licence="Public domain (text); Apache-2.0 (weights)",
    source="L. Tolstoy, Anna Karenina, and prose by A. Pushkin, from the RussianNovelsCorpus",
    notes=(
        "\nThe training text is the first 90 % of Anna Karenina and four files of Pushkin's prose (540,053 "
        "characters); the n-gram is one of Anna Karenina alone."
    ),
)


class Chars(Network):
    """x: int64 [batch, time] character ids -> y: float32 [batch, time, V] log-probabilities (nats) of what follows."""

    def __init__(
        self, language: Language, characters: list[str], embedding_size: int = 64, hidden_size: int = 256
    ) -> None:
        super().__init__()
        self.language, self.name, self.characters = language, language.name, characters
        self.embedding = nn.Embedding(len(characters), embedding_size)
        self.lstm = Recurrent("lstm", embedding_size, hidden_size, num_layers=2, dropout=language.dropout)
        self.head = nn.Linear(hidden_size, len(characters))
        self.dropout = nn.Dropout(language.dropout)
        self.state_size = self.lstm.state_size

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.lstm(self.embedding(x), state)
        return torch.log_softmax(self.head(y), dim=-1), state

    def learned(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, time, V] and the next state, as in training: with recurrent weights dropped."""
        names = [f"layers.weight_hh_l{k}" for k in range(self.lstm.num_layers)]
        dropped = {name: dropout(self.lstm.get_parameter(name), self.language.dropout / 2) for name in names}
        y, state = functional_call(self.lstm, dropped, (dropout(self.embedding(x), 0.1), state))
        return self.head(self.dropout(y)), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embedded = self.embedding.weight.detach().numpy().astype(np.float64)[x]
        y, state = oracle.recurrent(self.lstm, embedded, state)
        return np.log(oracle.softmax(oracle.linear(self.head, y))), state

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, len(self.characters), (batch, time))

    def ids(self, text: str) -> np.ndarray:
        """int64 [n] of a text, a character each; UNKNOWN where it was never seen."""
        place = {c: i for i, c in enumerate(self.characters)}
        return np.array([place.get(c, UNKNOWN) for c in text], np.int64)

    def describe(self, manifest: Manifest, folder: Path) -> None:
        from tokenizers import Regex, Tokenizer, pre_tokenizers
        from tokenizers.models import WordLevel

        vocabulary = {character: i for i, character in enumerate(self.characters)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=self.characters[UNKNOWN]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        texts = ["\ufffd", *self.characters[1:]]
        (folder / "vocabulary.json").write_text(json.dumps(texts))
        manifest.text.tokenizer_file = "tokenizer.json"
        manifest.text.is_by_character = True
        manifest.description = self.language.description
        manifest.mode = MANY_TO_MANY_ALIGNED
        manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=len(self.characters)))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(self.characters)], names=self.characters))
        manifest.position_unit = TEXT_BYTES
        # a prompt is read by the step's own graph
        manifest.prime.CopyFrom(
            Prime(
                graph=Graph(file="model.onnx", input="x", state_input="state", state_output="next_state"),
                condition=manifest.input,
                is_recurrent=True,
                is_prompt=True,
                text=manifest.text,
            )
        )
        manifest.generation.CopyFrom(
            Generation(
                begin_id=vocabulary["\n"],
                end_id=UNKNOWN,
                default_max_steps=200,
                max_steps=2000,
                vocabulary_file="vocabulary.json",
            )
        )
        manifest.architecture = f"LSTM, 2 layers of {self.lstm.hidden_size}, {len(self.characters)} characters"
        manifest.parts.extend(self.lstm.parts("lstm"))
        manifest.licence = self.language.licence
        manifest.data = self.language.source


def load(language: Language, data: Path) -> tuple[str, str]:
    """Training and validation text: the last text's first 90 % after all the others, and its last 10 %."""
    texts = [read(data, language.dataset, file, sha256) for file, sha256 in language.texts]
    cut = int(len(texts[-1]) * 0.9)
    return "".join([*texts[:-1], texts[-1][:cut]]), texts[-1][cut:]


def build(language: Language, data: Path) -> Chars:
    """A network for the characters of the training text."""
    learn, _ = load(language, data)
    return Chars(language, ["<unk>", *sorted(set(learn))])


def train(network: Chars, data: Path, trainer: Trainer) -> None:
    """Cross entropy of the next character: 32 streams through the text, each piece of 100 characters going on
    from the state that the one before left. The step size rises once and falls to nothing; the last weights are kept.
    """
    learn, valid = load(network.language, data)
    ids = torch.from_numpy(network.ids(learn))
    num_epochs = min(network.language.num_epochs, trainer.max_epochs or network.language.num_epochs)
    per_epoch = len(ids) // BATCH // STEPS
    done = 0

    def epoch() -> float:
        nonlocal done
        total = 0.0
        # the streams begin at other places each time
        rolled = ids.roll(int(torch.randint(len(ids), ()))).tolist()
        streams = torch.tensor(rolled[: BATCH * (len(ids) // BATCH)]).view(BATCH, -1)
        state = torch.zeros(BATCH, network.state_size)
        for k in range(per_epoch):
            piece = streams[:, k * STEPS : (k + 1) * STEPS + 1]
            trainer.set_rate(done / (num_epochs * per_epoch), peak=1.25)
            # now and then a text begins here, and a character is one never seen
            state = state * (torch.rand(BATCH, 1) >= 0.02)
            x = torch.where(torch.rand(BATCH, piece.shape[1] - 1) < 0.001, UNKNOWN, piece[:, :-1])
            with torch.autocast("cpu", torch.bfloat16):
                logits, state = network.learned(x, state)
            state = state.detach().float()
            total += trainer.step(cross_entropy(logits.float().flatten(0, 1), piece[:, 1:].flatten()))
            done += 1
        return total / per_epoch

    def validate() -> float:
        """A glance, in 64 streams and bfloat16: not the figure of the card."""
        ids = torch.from_numpy(network.ids(valid))
        streams = ids[: len(ids) // 64 * 64].view(64, -1)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = network(streams[:, :-1], torch.zeros(len(streams), network.state_size))
        return float(nll_loss(y.float().flatten(0, 1), streams[:, 1:].flatten()))

    trainer.cycle(epoch, validate, num_epochs=num_epochs)


@torch.no_grad()
def nats(network: Chars, text: str) -> float:
    """Mean -log p of each character of `text` but the first, read as one stream from the zero state."""
    ids = torch.from_numpy(network.ids(text))
    state, total = torch.zeros(1, network.state_size), 0.0
    for start in range(0, len(ids) - 1, 2000):
        following = ids[start + 1 : start + 2001]
        y, state = network(ids[None, start : start + len(following)], state)
        total -= float(y[0].gather(1, following[:, None]).double().sum())
    return total / (len(ids) - 1)


def evaluate(network: Chars, data: Path) -> Result:
    """Nats per character of the last 10 %, read as one stream after the last character of the training text."""
    language = network.language
    learn, valid = load(language, data)
    found = nats(network, learn[-1] + valid)
    unseen = sum(c not in network.characters for c in valid)
    ngram = f"interpolated Witten-Bell {language.ngram_order}-gram"
    return Result(
        metrics={"nats per character": found},
        baselines={ngram: language.ngram_nats, **dict(language.published)},
        unit=f"nats, {len(valid):,} characters",
        is_better=found < language.ngram_nats,
        notes=(
            f"The last 10 % of {language.texts[-1][0]}, every character counted, read as one stream from the zero "
            f"state. {unseen} of them are not in the training text of {len(learn):,} characters. There is no third "
            "part: dropout and step size were chosen with an eye on this one. The weights were not: they are the last "
            f"ones.{language.notes}"
        ),
        more={"bits per character": found / math.log(2)},
    )


def write_samples(language: Language, folder: Path, data: Path) -> None:
    """The validation text's first 2,000 characters."""
    _, valid = load(language, data)
    (folder / "text.txt").write_text(valid[:2000], "utf-8")
