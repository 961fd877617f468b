"""Loading the tokenizer that a contract counts on, with the rules of its own files.

A file of its own: what only tokenises, as the actors of a training stream do, imports no model.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, processors
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import fetch
from rayembed.contract.contract import end_id

_SENTENCEPIECE_FILE = "tokenizer.model"
_PROBES = ("plain words", "hello  world", " two", "a\nb\tc", "中文 é 🙂", "3.14", "x = '''y'''")


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Fast tokenizer of a folder or hub id, padding on the right.

    A tokenizer.json counts as it is, whatever class tokenizer_config.json names: classes bring other rules
    for spaces. A folder with tokenizer.model alone gives the ids of SentencePiece.

    Raises:
        CheckpointError: there is no tokenizer, it has no end token, its SentencePiece model cannot be
            followed exactly, or it has more tokens than the model next to it.
    """
    name = str(fetch(name, weights=False))
    try:
        if cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        elif (Path(name) / _SENTENCEPIECE_FILE).is_file():
            tokenizer = _from_sentencepiece(Path(name))
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"no tokenizer can be read from {name}; add the tokenizer.json of the same model "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    if end_id(tokenizer) is None:
        raise CheckpointError(
            f"the tokenizer of {name} has no end token, which the contract appends to every text; "
            "name one as eos_token in tokenizer_config.json"
        )
    if (Path(name) / "config.json").is_file():
        config, _ = PretrainedConfig.get_config_dict(name)
        check_vocabulary(tokenizer, config.get("vocab_size"), str(name))
    tokenizer.padding_side = "right"
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int | None, name: str) -> None:
    """Compare the largest id of a tokenizer with the rows of the model's embedding.

    Raises:
        CheckpointError: the embedding has no row for a token; the message names the first.
    """
    vocabulary = tokenizer.get_vocab()
    if rows is None or max(vocabulary.values()) < rows:
        return
    first = min((index, token) for token, index in vocabulary.items() if index >= rows)
    raise CheckpointError(
        f"the tokenizer of {name} has {max(vocabulary.values()) + 1} tokens and the model embeds {rows}, so "
        f"{first[1]!r} has no vector; resize the model's embedding and save it, or remove the added tokens"
    )


def _from_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-pair tokenizer out of a SentencePiece model, checked against it on a few texts."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise CheckpointError(
            f"{folder} has a {_SENTENCEPIECE_FILE} and no tokenizer.json; `pip install sentencepiece`, or "
            "add the tokenizer.json of the same model"
        ) from error
    pieces = SentencePieceProcessor(model_file=str(folder / _SENTENCEPIECE_FILE))
    scores = {pieces.id_to_piece(index): pieces.get_score(index) for index in range(len(pieces))}
    # The score ranks the merges. The id does not: runs of spaces have low ids and are merged last.
    merges = sorted(
        (-score, len(piece[:cut]), (piece[:cut], piece[cut:]))
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    )
    backend = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(scores)},
            merges=[pair for _, _, pair in merges],
            unk_token=pieces.id_to_piece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    for text in _PROBES:
        if backend.encode(text, add_special_tokens=False).ids != pieces.encode(text):
            raise CheckpointError(
                f"{folder / _SENTENCEPIECE_FILE} has rules that are not those of a Llama or Mistral model; "
                "add the tokenizer.json of the same model"
            )
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    special = {}
    for role, index in (("bos", pieces.bos_id()), ("eos", pieces.eos_id()), ("unk", pieces.unk_id())):
        declared = settings.get(f"{role}_token") or (pieces.id_to_piece(index) if index >= 0 else None)
        special[f"{role}_token"] = declared["content"] if isinstance(declared, dict) else declared
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    added = settings.get("added_tokens_decoder") or {}
    for _, token in sorted((int(index), token) for index, token in added.items()):
        tokenizer.add_tokens(token["content"], special_tokens=bool(token.get("special")))
    if settings.get("add_bos_token", True) and tokenizer.bos_token is not None:
        begin = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
        )
    return tokenizer
