"""The embedded tokenizer: round trips are exact, and the shipped files equal it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ctpo.tasks.arithmetic import model_path
from ctpo.tasks.arithmetic.tokenizer import EOS, PAD, VOCABULARY, WORDS, build_tokenizer

TOKENIZER = build_tokenizer()


@given(st.lists(st.sampled_from(WORDS)))
def test_round_trip(words: list[str]) -> None:
    text = "".join(words)
    ids = TOKENIZER(text)["input_ids"]
    assert ids == [VOCABULARY.index(word) for word in words]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@given(st.text(max_size=40))
def test_foreign_characters_are_read_as_the_unknown_word(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) <= len(text)
    assert all(0 <= i < len(VOCABULARY) for i in ids)


def test_foreign_characters_become_one_question_mark_each() -> None:
    assert TOKENIZER.decode(TOKENIZER("a<3\nprint x")["input_ids"]) == "??3????????"


def test_only_padding_and_end_are_special() -> None:
    assert set(TOKENIZER.all_special_tokens) == {PAD, EOS}
    ids = TOKENIZER(f"<py>print(3+6)</py><out>9</out>=9{EOS}{PAD}")["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<py>print(3+6)</py><out>9</out>=9"


def test_batches_are_padded_on_the_left() -> None:
    batch = TOKENIZER(["1+2=", "1+23="], padding=True)
    assert batch["attention_mask"] == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0][0] == TOKENIZER.pad_token_id


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_the_shipped_files_are_what_the_builder_writes(tmp_path: Path, name: str) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    shipped, built = ((folder / name).read_text() for folder in (model_path(), tmp_path))
    assert json.loads(shipped) == json.loads(built)


def test_the_shipped_tokenizer_loads_by_the_usual_door() -> None:
    shipped = AutoTokenizer.from_pretrained(model_path())
    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    assert (shipped.padding_side, shipped.pad_token, shipped.eos_token) == ("left", PAD, EOS)
    text = "<py>print(70-95)</py><out>-25</out>"
    assert shipped.decode(shipped(text)["input_ids"], skip_special_tokens=True) == text
