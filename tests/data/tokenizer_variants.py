"""Tokenizers small enough to tokenise by hand, each with a trait of a family of models."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}{{ m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


MERGES = (("Ġ", "4"), ("Ġ4", "2"), ("4", "2"), ("Ċ", "Ċ"))
"""In byte-level letters: " 4" is 256, " 42" 257, "42" 258, two line feeds 259."""


@cache
def gpt2_like() -> PreTrainedTokenizerFast:
    """Byte-level: a byte's token is its number, merges follow from 256 on; <|end|> is 300, bos and eos.

    It puts nothing before a text, as GPT-2 does.
    """
    vocab = _byte_vocabulary() | {a + b: 256 + i for i, (a, b) in enumerate(MERGES)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    core.decoder = decoders.ByteLevel()
    _fill(core, 300)
    core.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    assert core.token_to_id("<|end|>") == 300
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|end|>", eos_token="<|end|>")


@cache
def chatml_like() -> PreTrainedTokenizerFast:
    """The same with <|im_start|> 301 and <|im_end|> 302, a ChatML template, and <|end|> (300) as eos."""
    from tiny import CHATML

    core = Tokenizer.from_str(gpt2_like().backend_tokenizer.to_str())
    core.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in ("<|im_start|>", "<|im_end|>")])
    core.add_tokens([AddedToken(n, special=False, normalized=False) for n in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template=CHATML)


@cache
def llama_like() -> PreTrainedTokenizerFast:
    """SentencePiece style: "▁" for spaces and before the text, <s> (1) put before it, </s> (2); letters from 10 on."""
    letters = "▁\n" + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789[]/:.,?!<>|_"
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: 10 + i for i, c in enumerate(letters)} | {"▁a": 100, "▁4": 101}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "4")], unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in ("<unk>", "<s>", "</s>")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA
    )


@cache
def gemma_like() -> PreTrainedTokenizerFast:
    """Byte-level with <bos> (301) before plain text and in the template, turn ends that are not the eos, no system."""
    core = Tokenizer.from_str(gpt2_like().backend_tokenizer.to_str())
    names = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    core.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 301)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<|end|>", chat_template=GEMMA
    )


def ids(text: str) -> list[int]:
    """One token per character of ASCII, for texts in which nothing merges."""
    return list(text.encode("ascii"))


def _byte_vocabulary() -> dict[str, int]:
    """GPT-2's letters for bytes, at the byte's own number."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in kept} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in kept)
    }
    return {letter: byte for byte, letter in letters.items()}


def _fill(core: Tokenizer, size: int) -> None:
    """Ordinary tokens that match nothing, so that the special ones get round numbers."""
    core.add_tokens([AddedToken(f"\ue123{i}", normalized=False) for i in range(size - core.get_vocab_size())])
