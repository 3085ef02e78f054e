"""The tokenizer of the embedded model, which has 23 words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctpo.tasks.arithmetic.task import TOOL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
UNKNOWN = TOOL.substitute
STEP_END = ";"
TAGS = (TOOL.open, TOOL.close, TOOL.result_open, TOOL.result_close)
WORDS = (*TAGS, "print(", ")", *"0123456789", "+", "-", "=", STEP_END, UNKNOWN)
VOCABULARY = (PAD, EOS, *WORDS)
MAX_LENGTH = 256
WORKSHEET_LENGTH = 4096


def build_tokenizer(max_length: int = MAX_LENGTH) -> PreTrainedTokenizerFast:
    """The tokenizer of the vocabulary above, of a model with this many positions.

    Decoding joins the words without spaces. `skip_special_tokens=True` drops padding and the end of sequence only: tool
    tags are ordinary words, because transcripts and the answer check need them. A character that is not in the
    vocabulary is read as `?`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(VOCABULARY)}
    # Only the inner model knows the unknown word. The outer tokenizer would make it special and drop it.
    inner = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    longest_first = sorted(WORDS, key=len, reverse=True)
    pattern = "|".join([*map(_literal, longest_first), r"[\s\S]"])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _literal(word: str) -> str:
    # re.escape writes for Python's regular expressions, and these are Oniguruma's. A class means the same in both.
    return "".join(f"[{c}]" if c not in r"\^-]" else f"\\{c}" for c in word)
