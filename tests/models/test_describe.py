"""Dialogue acts and sentences: values out and in, patterns of acts, BLEU and slot errors as they are counted."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import describe, describe_scores  # noqa: E402
from cellar_models.describe_data import (  # noqa: E402
    DOMAINS,
    Example,
    delexicalise,
    filled,
    in_domain,
    lexicalise,
    load,
    normalise,
    pattern,
)
from cellar_models.describe_network import Describe  # noqa: E402
from cellar_proto.acts import features  # noqa: E402

DATA = Path(os.environ.get("CELLAR_DATA", "data"))
with_data = pytest.mark.skipif(not (DATA / "nlg_rnnlg").is_dir(), reason="CELLAR_DATA holds no nlg_rnnlg")


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("There aren't any televisions, sir.", "there are not any television -s , sir ."),
        ("there aren't any televisions .", "there are not any television -s"),
        ("it's 2.5 kg, isn't it ?", "it is 2.5 kg , is not it"),
        ("caerus' price is 1,000 dollars; ok", "caerus price is 1,000 dollars , ok"),
        ("the hotel 's area . you'd like it , we're sure", "the hotel 's area . you would like it , we are sure"),
        ("i can't , it won't", "i cannot , it will not"),
        ('58 inches and 44 watts/hour "cheaply"', "58 inch -s and 44 watt -s and hour cheap -ly"),
    ],
)
def test_sentences_are_read_as_the_benchmark_reads_them(sentence: str, words: str) -> None:
    assert normalise(sentence) == words


def test_an_act_gets_its_domain() -> None:
    assert in_domain("goodbye()", "hotel") == "goodbye(domain=hotel)"
    assert in_domain("inform(name='x';area=y)", "tv") == "inform(domain=tv;name='x';area=y)"
    assert in_domain("?request(near)", "hotel") == "?request(domain=hotel;near)"


def test_sentences_lose_and_regain_their_values() -> None:
    values = {"<name>": "Bar Tartine", "<food>": "thai"}
    words = delexicalise("bar tartine serves thai food", values)
    assert words == ["<name>", "serves", "<food>", "food"]
    assert lexicalise(words, values) == "Bar Tartine serves thai food"


def test_the_longest_value_goes_first_and_each_once() -> None:
    values = {"<family>": "satellite", "<name>": "satellite eurus 65"}
    assert delexicalise("the satellite eurus 65 of satellite , satellite", values) == [
        "the", "<name>", "of", "<family>", ",", "satellite",
    ]  # fmt: skip


def test_a_list_of_values_may_stand_in_any_order() -> None:
    values = {"<area>": "soma or noma", "<design>": "matt & glossy"}
    assert delexicalise("in noma and soma", values) == ["in", "<area>"]
    assert delexicalise("matt and glossy", values) == ["<design>"]


def test_two_of_a_slot_have_two_placeholders() -> None:
    act = "?compare(domain=tv;name=ares 1;family=l2;hasusbport=false;name=eros 2;family=l2;hasusbport=true)"
    values = filled(act)
    assert values == {"<name>": "ares 1", "<name#2>": "eros 2", "<family>": "l2", "<family#2>": "l2"}
    assert delexicalise("eros 2 in l2 or ares 1 in l2", values) == [
        "<name#2>", "in", "<family>", "or", "<name>", "in", "<family#2>",
    ]  # fmt: skip
    names, _ = features(act, frozenset({"name", "family"}), frozenset({"hasusbport", "domain"}))
    assert names == [
        "act=?compare", "slot=domain:tv", "slot=name", "slot=family", "slot=hasusbport:no", "slot=name#2",
        "slot=family#2", "slot=hasusbport#2:yes",
    ]  # fmt: skip


def test_acts_of_one_pattern_differ_in_values_order_and_domain_alone() -> None:
    one = pattern("inform(domain=hotel;name='x';area=y;dogsallowed=dont_care)")
    assert one == pattern("inform(dogsallowed='dontcare';area='z w';name=q)")
    assert one != pattern("inform(name=x;area=dontcare;dogsallowed=dontcare)")
    assert one != pattern("recommend(name=x;area=y;dogsallowed=dontcare)")
    assert pattern("?select(dogsallowed=yes;dogsallowed=no)") == pattern("?select(dogsallowed=false;dogsallowed=true)")
    assert pattern("?compare(name=a;name=b)") == ("?compare", ("name", "_1"), ("name", "_2"))
    assert pattern("?request(near)") == ("?request", ("near", ""))


def test_bleu_of_known_sentences() -> None:
    same = "the cat sat on the mat"
    assert describe_scores.bleu([same], [(same, "a")]) == pytest.approx(1.0)
    assert describe_scores.bleu(["no word in common"], [(same,)]) == 0.0
    assert describe_scores.bleu(["the cat sat on the"], [(same,)]) == pytest.approx(float(np.exp(1 - 6 / 5)))
    # by hand: 5 of 5 words, 3 of 4 pairs, 1 of 3 triples, and no four
    assert describe_scores.bleu(["a b c d e"], [("a b c", "d e")]) == 0.0
    # two sentences of 4 and 5 words; 9 of 9, 6 of 7, 4 of 5 and 2 of 3; references of 4 and 5 words are nearest
    found = describe_scores.bleu(["a b c d", "a b c d e"], [("a b c d", "x y z v w u"), ("a b c d", "x y z d e")])
    assert found == pytest.approx((9 / 9 * 7 / 7 * 4 / 5 * 2 / 3) ** 0.25)
    # what is there twice counts twice: 14 of 14 words, 11 of 11 pairs, 6 of 8 and 3 of 5, beside 14 words
    pairs = ("a b c d e", ("a b c d", "x y z d e")), ("a b c d", ("a b c d",))
    hypotheses, references = zip(*(pairs[i] for i in (0, 1, 0)), strict=True)
    found = describe_scores.bleu(list(hypotheses), list(references))
    assert found == pytest.approx((14 / 14 * 11 / 11 * 6 / 8 * 3 / 5) ** 0.25)


EXAMPLES = [
    Example("hotel", "inform(domain=hotel;name='the new york inn';area=soma)", "the new york inn is in soma"),
    Example("hotel", "inform(domain=hotel;area=noma;name=metro)", "in noma there is the metro"),
    Example("hotel", "inform(domain=hotel;area=noma;name=metro)", "metro is found in noma"),
    Example("hotel", "goodbye(domain=hotel)", "have a nice day"),
    Example("hotel", "goodbye(domain=hotel)", "have a nice day"),
]


def test_every_sentence_is_an_item_whose_references_are_those_of_its_pattern() -> None:
    found = describe_scores.items(EXAMPLES)
    assert [item.act for item in found] == [example.act for example in EXAMPLES]
    assert found[0].references == found[1].references
    assert [" ".join(words) for words in found[0].references] == [
        "<name> is in <area>", "in <area> there is the <name>", "<name> is found in <area>",
    ]  # fmt: skip
    assert found[3].references == (("have", "a", "nice", "day"),)
    own = describe_scores.own_items(found, EXAMPLES)
    assert [len(item.references) for item in own] == [1, 2, 2, 1, 1]


def test_values_are_filled_into_references_of_other_acts() -> None:
    one = describe_scores.items(EXAMPLES)[:1]

    def said(item: describe_scores.Item) -> list[tuple[str, ...]]:
        return [("<name>", "is", "found", "in", "<area>")]

    # "the new york inn is found in soma", another act's sentence with this act's values
    assert describe_scores.filled_bleu(one, said) == pytest.approx(1.0)
    assert describe_scores.bare_bleu(one, said) == pytest.approx(1.0)
    own = describe_scores.own_items(one, EXAMPLES[:1])
    # beside its own sentence alone: 7 of 8 words, 5 of 7 pairs, 3 of 6 triples, 2 of 5 fours; 8 words beside 7
    assert describe_scores.filled_bleu(own, said) == pytest.approx((7 / 8 * 5 / 7 * 3 / 6 * 2 / 5) ** 0.25)


def test_an_act_counts_as_often_as_it_occurs_or_once() -> None:
    found = describe_scores.items(EXAMPLES)

    def said(item: describe_scores.Item) -> list[tuple[str, ...]]:
        return [("have", "a", "nice", "day") if not item.values else ("<name>", "near", "<area>", "is", "found")]

    # twice all is right; three times 4 of 5 words and 1 of 4 pairs
    words, pairs, triples, fours = (2 * 4 + 3 * 4) / (8 + 15), 9 / 18, 4 / 13, 2 / 8
    assert describe_scores.bare_bleu(found, said) == pytest.approx((words * pairs * triples * fours) ** 0.25)
    assert describe_scores.once_bleu(found, said) == pytest.approx((8 / 9 * 4 / 7 * 2 / 5 * 1 / 3) ** 0.25)


def test_slot_errors_are_what_is_missing_doubled_or_not_asked_for() -> None:
    values = {"<name>": "x", "<name#2>": "y"}
    assert describe_scores.slot_errors(("<name>", "or", "<name#2>", "<unk>"), values) == 0
    assert describe_scores.slot_errors(("<name>", "or", "<name>"), values) == 2
    assert describe_scores.slot_errors(("<area>", "<area>"), values) == 4
    item = describe_scores.Item("", ("",), values, ())
    assert describe_scores.slot_error([item, item], lambda _: [("<name>",), ("<name>", "<name#2>")]) == 0.25


def test_the_nearest_pattern_shares_the_most() -> None:
    groups = describe_scores.grouped(EXAMPLES)
    assert describe_scores.nearest(groups, pattern("goodbye(domain=hotel)")) == [("have", "a", "nice", "day")] * 2
    near = describe_scores.nearest(groups, pattern("inform(name=a;area=b;phone=c)"))
    assert len(near) == 3
    assert describe_scores.most_typical(near)[0] in ("<name>", "in")
    twice = ("a", "b", "c", "d")
    assert describe_scores.most_typical([("a", "b"), twice, twice]) == twice


def tiny() -> Describe:
    words = ["<begin>", "<end>", "<unk>", "is", "in", "<name>", "<area>"]
    names = ["act=inform", "slot=name", "slot=area", "slot=area:dontcare", "slot=domain:hotel"]
    torch.manual_seed(0)
    return Describe(words, names, ["area", "name"], ["domain"], 6, 4).eval()


def test_what_was_said_is_no_longer_left_to_say() -> None:
    network = tiny()
    condition, values = network.condition("inform(domain=hotel;name=x;area=y)")
    assert condition.tolist() == [1, 1, 1, 0, 1]
    assert values == {"<name>": "x", "<area>": "y"}
    state = network.prime(torch.from_numpy(condition)[None], torch.zeros(1, network.state_size))
    with torch.no_grad():
        _, state = network(torch.tensor([[0, 5, 3, 5]]), state)  # said twice: taken away once
    assert state[0, network.lstm.state_size :].tolist() == [1, 0, 1, 0, 1]


def test_sentences_of_many_acts_are_those_of_each_alone() -> None:
    network = tiny()
    acts = ["inform(name=x)", "inform(domain=hotel;name=x;area=y)", "inform(area=dont_care)", "inform(name=other)"]
    together = describe.greedy(network, acts)
    assert together == {act: describe.greedy(network, [act])[act] for act in acts}
    assert together["inform(name=x)"] == together["inform(name=other)"]


def test_the_best_of_what_was_drawn_has_the_fewest_slot_errors() -> None:
    network = tiny()
    act = "inform(domain=hotel;name=x;area=y)"
    best = describe.best_drawn(network, [act], temperature=2.0, num_drawn=40, num_best=5)[act]
    values = network.condition(act)[1]
    errors = [describe_scores.slot_errors(words, values) for words in best]
    assert errors == sorted(errors)
    assert len(set(best)) == len(best) == 5
    assert best == describe.best_drawn(network, [act], temperature=2.0, num_drawn=40, num_best=5)[act]


@with_data
def test_every_act_of_the_data_is_read() -> None:
    network = describe.build(DATA)
    counts = [Counter(example.domain for example in load(DATA, split)) for split in ("train", "valid", "test")]
    assert [[each[domain] for domain in DOMAINS] for each in counts] == [
        [3114, 3223, 7944, 4221], [1039, 1075, 2649, 1407], [1039, 1075, 2649, 1407],
    ]  # fmt: skip
    unknown = set()
    for example in load(DATA, "test"):
        names, _ = features(example.act, frozenset(network.copied), frozenset(network.closed))
        unknown |= set(names) - set(network.feature_names)
    # each in one act of laptops
    assert unknown == {"slot=weightrange:", "slot=family:"}
    assert not {"domain", "isforbusinesscomputing"} & set(network.copied)


@with_data
def test_nearly_all_values_are_found_in_their_sentences() -> None:
    for domain in DOMAINS:
        missing = total = 0
        for example in load(DATA, "train", [domain]):
            values = filled(example.act)
            words = delexicalise(example.sentence, values)
            missing += sum(placeholder not in words for placeholder in values)
            total += len(values)
        assert missing < 0.005 * total, domain
