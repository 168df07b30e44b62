"""Text to token ids, as it arrives: what may still change is held back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from tokenizers import Tokenizer

from cellar_server.errors import CellarError


class TextCodec:
    """Cuts text at white space and encodes whole words, or (is_by_character) cuts it anywhere and encodes every
    character, white space too: ids do not depend on how the text was cut.

    With head_bytes or tail_bytes a step is a word's id and the bytes that it begins and ends with.
    """

    # what a whole sequence that gives no step is answered with
    nothing = "the text holds no word"

    def __init__(
        self,
        tokenizer_file: Path,
        max_word_bytes: int = 256,
        *,
        is_by_character: bool = False,
        head_bytes: int = 0,
        tail_bytes: int = 0,
    ) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_file.read_text("utf-8"))
        self.max_word_bytes = max_word_bytes
        self.is_by_character = is_by_character
        self.head_bytes, self.tail_bytes = head_bytes, tail_bytes
        self.step_shape = (1 + head_bytes + tail_bytes,) if head_bytes or tail_bytes else ()
        if self.step_shape and (
            is_by_character or [len(self._encode(w)) for w in ("a", "\u1e9e-'s", "1,5")] != [1, 1, 1]
        ):
            raise ValueError(f"{tokenizer_file.name} does not give one id for every word")
        # a letter, two kinds of white space, a letter that was hardly in any training text, a mark on the one before
        if is_by_character and len(self._encode("a \n\u1e9e\u0301")) != 5:
            raise ValueError(f"{tokenizer_file.name} does not give one id for every character")

    def take(self, tail: bytes, chunk: bytes, end: bool) -> tuple[np.ndarray, bytes]:
        """Ids int64 [n] (with bytes: [n, 1 + head + tail]) of the words (characters) that are now whole, and the new
        tail (at most max_word_bytes, by characters at most 3 bytes).

        tail: what was held back; end: nothing follows, so the last word is whole too. A word longer than max_word_bytes
        is cut there, before the character that would go over. INVALID_TEXT for bytes that are not UTF-8, by their
        place in tail + chunk; half a character at the end of a chunk waits for its rest.
        """
        data = tail + chunk
        try:
            text, rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            is_cut_short = error.reason == "unexpected end of data" and error.end == len(data)
            if end or not is_cut_short:
                raise CellarError(
                    Reason.INVALID_TEXT, f"the text is not UTF-8 at byte {error.start - len(tail)} of the chunk"
                ) from None
            text, rest = data[: error.start].decode("utf-8"), data[error.start :]
        if self.is_by_character:
            return np.array(self._encode(text), np.int64), rest
        words: list[str] = []
        for word, is_open in _words(text):
            pieces = self._cut(word)
            held = is_open and not end
            words += pieces[:-1] if held else pieces
            if held:
                rest = pieces[-1].encode() + rest
        if not words:
            return np.zeros((0, *self.step_shape), np.int64), rest
        encodings = self.tokenizer.encode_batch(words, add_special_tokens=False)
        if self.step_shape:
            return np.array([self._spell(word, each.ids) for word, each in zip(words, encodings, strict=True)]), rest
        return np.array([id for encoding in encodings for id in encoding.ids], np.int64), rest

    def _spell(self, word: str, ids: list[int]) -> list[int]:
        if len(ids) != 1:  # a character that the tokenizer, and nobody else, takes for white space
            raise CellarError(Reason.INVALID_TEXT, "a word of the text has no single id")
        raw = word.encode()
        head, tail = raw[: self.head_bytes], raw[max(0, len(raw) - self.tail_bytes) :]
        before, behind = [0] * (self.tail_bytes - len(tail)), [0] * (self.head_bytes - len(head))
        return [ids[0], *(1 + byte for byte in head), *behind, *before, *(1 + byte for byte in tail)]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _cut(self, word: str) -> list[str]:
        """A word in pieces of at most max_word_bytes."""
        if len(word) * 4 <= self.max_word_bytes:
            return [word]
        pieces, size, piece = [], 0, ""
        for character in word:
            width = len(character.encode())
            if size + width > self.max_word_bytes:
                pieces.append(piece)
                size, piece = 0, ""
            piece += character
            size += width
        return [*pieces, piece]


def _words(text: str) -> list[tuple[str, bool]]:
    """Words between white space, the last one open where no white space follows it."""
    words = text.split()
    is_open = bool(words) and not text[-1].isspace()
    return [(word, is_open and i == len(words) - 1) for i, word in enumerate(words)]
