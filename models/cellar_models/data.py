"""Where the data sets lie, and whether they are the ones that the figures were measured on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SOURCES = {
    "captions_nlvr": "github.com/lil-lab/nlvr, nlvr/{dev,test,hidden}: true sentences and images scaled to 50 x 200",
    "charlm_russian": "github.com/ginic/RussianNovels, corpus/*.txt",
    "charlm_shakespeare": "github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt",
    "melody_nottingham": "github.com/jukedeck/nottingham-dataset, ABC_cleaned/*.abc, written as tunes.tsv",
    "nlg_rnnlg": "github.com/shawnwun/RNNLG, data/original, written as <domain>.<split>.tsv",
    "sentiment_rt": "github.com/dennybritz/cnn-text-classification-tf, data/rt-polaritydata",
    "sentiment_ru_goemotions": "github.com/searayeah/ru-goemotions, dataset, written as goemotions_ru.tsv",
    "sentiment_ru_xed": "github.com/Helsinki-NLP/XED, Projections/ru-projections.tsv, written as xed_ru.tsv",
    "speech_fsdd": "github.com/Jakobovski/free-spoken-digit-dataset, all recordings in one fsdd.npz",
    "tagging_ud_ewt": "github.com/UniversalDependencies/UD_English-EWT, form and UPOS as {train,dev,test}.tsv",
    "translation_en_fr": "manythings.org/anki (Tatoeba), fra-eng of 2017-09-29, as {train,dev,test}.tsv",
    "translation_multi30k": "github.com/multi30k/dataset, data/task1/raw",
    "ts_beijing_pm25": "github.com/jbrownlee/Datasets, pollution.csv",
    "ts_etth1": "github.com/zhouhaoyi/ETDataset, ETT-small/ETTh1.csv",
}


class DataMissing(FileNotFoundError):
    """A data set is not there; the message says how to get it."""


class DataChanged(ValueError):
    """A file is not the one that the code was written for."""


def data_folder() -> Path:
    """The folder named by CELLAR_DATA, else `data`."""
    return Path(os.environ.get("CELLAR_DATA", "data"))


def read(data: Path, dataset: str, file: str, sha256: str) -> str:
    """The text of a data file; DataMissing, DataChanged."""
    return read_bytes(data, dataset, file, sha256).decode("utf-8")


def read_bytes(data: Path, dataset: str, file: str, sha256: str) -> bytes:
    """The content of a data file; DataMissing, DataChanged."""
    path = data / dataset / file
    if not path.is_file():
        raise DataMissing(
            f"{path} is missing. Get it from {SOURCES[dataset]} and put it there, or point CELLAR_DATA at the folder "
            f"that holds {dataset}/."
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataChanged(f"{path} has sha256 {found}; the figures hold for {sha256}")
    return content
