"""Where the data sets lie, and whether they are the ones that the figures were measured on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SOURCES = {
    "sentiment_rt": "github.com/dennybritz/cnn-text-classification-tf, data/rt-polaritydata",
    "nlg_rnnlg": "github.com/shawnwun/RNNLG, data/original, written as <domain>.<split>.tsv",
    "ts_beijing_pm25": "github.com/jbrownlee/Datasets, pollution.csv",
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
    return content.decode("utf-8")
