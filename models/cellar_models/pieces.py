"""Word pieces of a source and a target language, by byte pair encoding (Sennrich et al., ACL 2016)."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

UNKNOWN, BEGIN, END = 0, 1, 2
SPECIAL = ["<unk>", "<begin>", "<end>"]


def source_pieces(sentences: list[str], size: int) -> Tokenizer:
    """Pieces of lower-case words and punctuation."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(tokenizer, sentences, size)


def target_pieces(sentences: list[str], size: int) -> Tokenizer:
    """Pieces of words with the space before them, so that pieces behind one another are the text."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return _trained(tokenizer, sentences, size)


def _trained(tokenizer: Tokenizer, sentences: list[str], size: int) -> Tokenizer:
    tokenizer.train_from_iterator(
        sentences, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False, min_frequency=2)
    )
    return tokenizer
