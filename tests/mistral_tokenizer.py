"""The tokenizer of Mistral-7B-v0.1, rebuilt from the sentencepiece model that `mistral-common` ships."""

import importlib.util
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast


def sentencepiece_file() -> Path | None:
    """File of the version 1 vocabulary; None where mistral-common is not installed."""
    package = importlib.util.find_spec("mistral_common")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def make_mistral_tokenizer(model_file: Path) -> PreTrainedTokenizerFast:
    """Fast tokenizer with the settings of the published folder: beginning token on, end token off."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(model_file))
    scores = {pieces.id_to_piece(index): pieces.get_score(index) for index in range(len(pieces))}
    # The score ranks the merges. The id does not: runs of spaces have low ids and are merged last.
    merges = [
        (-score, len(piece[:cut]), (piece[:cut], piece[cut:]))
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    model = models.BPE(
        vocab=vocabulary,
        merges=[pair for _, _, pair in sorted(merges)],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
