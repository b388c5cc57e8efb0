"""Small models from nothing: a tokenizer trained on given texts and randomly initialised weights.

For a quickstart, for tests, and for experiments that fit on a laptop.  What is written is ordinary Hugging Face
format, so everything else treats it like any other model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from gro.policy.loading import quiet
from gro.policy.spec import CreateSpec

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML: every turn ends with <|im_end|>, which is also the end-of-sequence token."""

# GPT-4's way of cutting text, with every digit on its own: arithmetic is learnt sooner when 123 and 124 share tokens.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, all_bytes: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a ChatML template; the same texts give the same tokenizer.

    Special tokens: <|endoftext|> (beginning of sequence, padding), <|im_start|>, <|im_end|> (end of sequence).  Few
    texts give fewer tokens than asked for.  Without `all_bytes` only bytes that the texts hold are tokens, and any
    other is read as <|endoftext|>.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet() if all_bytes else []
    special = [END_OF_TEXT, TURN_START, TURN_END]
    if vocab_size < len(alphabet) + len(special):
        raise ValueError(
            f"vocab_size must be at least {len(alphabet) + len(special)} "
            f"(256 bytes and {len(special)} special tokens), got {vocab_size}"
        )
    core = Tokenizer(models.BPE() if all_bytes else models.BPE(unk_token=END_OF_TEXT))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def create_model(spec: CreateSpec, tokenizer: PreTrainedTokenizerBase, out_dir: str | Path) -> Path:
    """Writes a randomly initialised model and the tokenizer; the same spec gives the same weights.

    Raises:
        ValueError: the tokenizer has more tokens than the spec has embeddings, or the folder already holds a model.
    """
    out = Path(out_dir)
    if (out / "config.json").exists():
        raise ValueError(f"{out} already holds a model; remove it or choose another folder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(configuration(spec, tokenizer), dtype=torch.float32)
    with quiet():
        model.save_pretrained(out)
    tokenizer.model_max_length = spec.max_positions
    tokenizer.save_pretrained(out)
    return out


def configuration(spec: CreateSpec, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The transformers configuration of such a model; ValueError for what its architecture cannot be."""
    if len(tokenizer) > spec.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the spec {spec.vocab_size} embeddings")
    kind = CONFIG_MAPPING[spec.architecture]
    names = getattr(kind, "attribute_map", {})
    sizes = {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.hidden_size // spec.heads,
        "intermediate_size": spec.feed_forward,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "tie_word_embeddings": spec.tie_embeddings,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    plain = kind()
    config = kind(
        **{names.get(name, name): value for name, value in sizes.items() if hasattr(plain, names.get(name, name))}
    )
    if spec.kv_heads != spec.heads and not hasattr(config, "num_key_value_heads"):
        raise ValueError(f"{spec.architecture} has no grouped queries: kv_heads must equal heads, {spec.heads}")
    return config
