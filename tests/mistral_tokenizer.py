"""The SentencePiece model of Mistral-7B-v0.1, which `mistral-common` ships."""

import importlib.util
import json
import shutil
from pathlib import Path

from rayembed.contract.tokenizer import load_tokenizer


def sentencepiece_file() -> Path | None:
    """File of the version 1 vocabulary; None where mistral-common is not installed."""
    package = importlib.util.find_spec("mistral_common")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def mistral_tokenizer(folder: Path):
    """The tokenizer of a folder with that file and no tokenizer.json, as older uploads have it."""
    shutil.copy(sentencepiece_file(), folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {"2": {"content": "</s>", "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)
