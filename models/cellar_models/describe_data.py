"""RNNLG's four domains as `describe` learns them: dialogue acts and sentences, values out of them and into them."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cellar_proto.acts import features, parse, special

from cellar_models.data import read

DOMAINS = ("restaurant", "hotel", "laptop", "tv")
# The slot that tells the domain. The data have none: each domain is a file.
DOMAIN_SLOT = "domain"
FILES = {
    "restaurant.train": "d9d685a557bc8d0811512fa165760f8d0e2dd00af27aff2684579e14c3d898e1",
    "restaurant.valid": "2632688c855bc0157dbd821fdb02a17518fb1eb8aa34b704f6231bce914c91c4",
    "restaurant.test": "216f1f48ad3d109c412b63f40bb55f7bb132df65c33637dfdc7ca7333672e1d2",
    "hotel.train": "bb39a4af336e241460d8a65da7c026d0bb24a5e74f1447099dbadba315152778",
    "hotel.valid": "e637dc6e143b0ed091b27823d8bc8488bd8ce286b060d969e29ae9d3ad50391a",
    "hotel.test": "d59094401b51e6b19bd754f008a439de2bd834bb5d6b25386e944cad687a7e3c",
    "laptop.train": "89cb7e2e6fefd639bd2d5f4216243413bc650654b03626361302a12e332c617e",
    "laptop.valid": "d9c584af5ccbd3ac4b15ceed670a27358bf4cd68130bb5642f00cd63f8a68f48",
    "laptop.test": "d6f9fa29d061ae428966edfd7a476dd7e72d594aa07cf76d965d9b8d5b782551",
    "tv.train": "c943ba4b55e912774c27ddb6216adabdf643d4fae3381ed2a80cdb8eee8b16e8",
    "tv.valid": "833b054c1f4de8b8a197b07e84fd1555d807497fad164b8a961fd82d9e75968d",
    "tv.test": "8ccfbcc54366096d0b048df46f29d0a737e02ab1365af3c6d96719f83d32bc7a",
}
# Words whose endings stand apart, so that a value before an ending is found ("58 inch -s"). Three domains come so; the
# program of the benchmark does it to all of them. "watt" is ours.
_STEMS = {
    "s": "accessory area business card computer constraint dimension drive family hour hotel inch include kid laptop "
    "location machine meal place policy port price range rating requirement restaurant specification television use "
    "venue watt",
    "ly": "actual certain cheap definite expensive extreme moderate most nice sure total true typical",
}
_NOT = {"cannot": "cannot", "can't": "cannot", "won't": "will not"}
_SHORT = {"'re": "are", "'ve": "have", "'ll": "will", "'m": "am"}
_IS = {"it", "that", "what", "there"}


@dataclass(frozen=True)
class Example:
    """A dialogue act, with its domain as a slot, and a sentence that a person wrote for it."""

    domain: str
    act: str
    sentence: str


def load(data: Path, split: str, domains: Iterable[str] = DOMAINS) -> list[Example]:
    """18,502 train, 6,170 valid, 6,170 test, domain by domain, in the order of the files."""
    return [example for domain in domains for example in _load(data, split, domain)]


@functools.cache
def _load(data: Path, split: str, domain: str) -> tuple[Example, ...]:
    text = read(data, "nlg_rnnlg", f"{domain}.{split}.tsv", FILES[f"{domain}.{split}"])
    lines = (line.split("\t", 1) for line in text.splitlines())
    return tuple(Example(domain, in_domain(act, domain), normalise(sentence)) for act, sentence in lines)


def in_domain(act: str, domain: str) -> str:
    """`inform(name='x')` as `inform(domain=hotel;name='x')`."""
    name, rest = act.split("(", 1)
    return f"{name}({DOMAIN_SLOT}={domain}{'' if rest.lstrip().startswith(')') else ';'}{rest}"


def _plural(stem: str) -> str:
    if stem.endswith("y"):
        return f"{stem[:-1]}ies"
    return f"{stem}es" if stem.endswith(("ch", "ss")) else f"{stem}s"


_APART = {_plural(stem): f"{stem} -s" for stem in _STEMS["s"].split()}
_APART |= {f"{stem.removesuffix('e') if stem == 'true' else stem}ly": f"{stem} -ly" for stem in _STEMS["ly"].split()}
_APART |= {"children": "child -s", "st": "street", "ave": "avenue", "#": "number", "&": "and"}


def normalise(sentence: str) -> str:
    """A sentence as the benchmark's program reads it: lower case, without its last mark, marks, short forms and some
    endings apart ("there aren't any televisions." is "there are not any television -s")."""
    text = re.sub(r"\s[.?!]$", "", sentence.lower().strip())
    text = re.sub(r'[":<>@]', "", text.replace(";", ",").replace("/", " and "))
    text = re.sub(r"\s*([?!]|(?<!\d)[.,]|[.,](?!\d))", r" \1 ", text)
    return " ".join(itertools.chain.from_iterable(_words(word) for word in text.split()))


def _words(word: str) -> list[str]:
    word = word if word == "'s" else word.strip("'") or word
    if word in _NOT:
        return _NOT[word].split()
    if word.endswith("n't") and len(word) > 3:
        return [word[:-3], "not"]
    for short, whole in _SHORT.items():
        if word.endswith(short) and len(word) > len(short):
            return [word.removesuffix(short), whole]
    if word.endswith("'d") and len(word) > 2:
        return [word[:-2], "would"]
    if word.endswith("'s") and len(word) > 2:
        return [word[:-2], "is" if word[:-2] in _IS else "'s"]
    return _APART.get(word, word).split()


def filled(act: str) -> dict[str, str]:
    """The values that fill an act's slots, by their placeholders."""
    return features(act, frozenset(slot for slot, _ in parse(act)[1]) - {DOMAIN_SLOT}, frozenset({DOMAIN_SLOT}))[1]


def pattern(act: str) -> tuple[str | tuple[str, str], ...]:
    """What is left of an act without its domain and without the values that fill its slots, in no order: acts of one
    pattern are one act to the benchmark."""
    name, slots = parse(act)
    seen: Counter[str] = Counter()
    found = []
    for slot, value in slots:
        told = special(value)
        if told is None:
            seen[slot] += 1
            told = f"_{seen[slot]}"
        if slot != DOMAIN_SLOT:
            found.append((slot, told))
    return name, *sorted(found)


def delexicalise(sentence: str, values: dict[str, str]) -> list[str]:
    """Words of a sentence with the values replaced by their placeholders, each once, the longest value first; what a
    value lists with "and" or "or" may stand in any order."""
    sentence = f" {sentence.lower()} "
    for placeholder, value in sorted(values.items(), key=lambda item: -len(item[1])):
        for form in _forms(value.lower().replace("&", "and")):
            if f" {form} " in sentence:
                sentence = sentence.replace(f" {form} ", f" {placeholder} ", 1)
                break
    return sentence.split()


def _forms(value: str) -> list[str]:
    parts = value.replace(" or ", " and ").split(" and ")
    if not 1 < len(parts) < 5:
        return [value]
    orders = list(itertools.permutations(parts))
    return [value, *(word.join(order) for word in (" and ", " or ") for order in orders)]


def lexicalise(words: list[str], values: dict[str, str]) -> str:
    return " ".join(values.get(word, word) for word in words)
