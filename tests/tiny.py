"""A tiny random Mistral and tokenizer, saved as an ordinary Hugging Face folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast


def make_tokenizer(*, with_beginning: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer: one token a byte, an end token, and a beginning token on request."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, "<begin>": 1} | {piece: index + 2 for index, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if with_beginning:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<end>",
        bos_token="<begin>" if with_beginning else None,
    )


def make_backbone(seed: int = 0, **changes) -> MistralModel:
    """Random two-layer Mistral of width 32 over the vocabulary of `make_tokenizer`."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "sliding_window": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    return MistralModel(MistralConfig(**settings | changes)).eval()


def save_base(folder: Path) -> Path:
    """Write the model and the tokenizer as a base-model folder."""
    make_backbone().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
