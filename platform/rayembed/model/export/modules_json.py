"""A folder of sentence-transformers in this library's terms.

    modules.json                        what is here
    Transformer, path ""                the backbone, with its tokenizer
    Pooling, path 1_Pooling             model.pooling: mean, cls, weighted_mean or eos (lasttoken)
    Normalize, path 2_Normalize         nothing: vectors always have length 1
    max_seq_length                      contract.max_length
    prompts                             contract.instructions, whose template is the bare prompt
    include_prompt                      contract.pool_instruction

Nothing of sentence-transformers itself is imported. Other modules, such as Dense, are refused by name.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayembed.common.errors import CheckpointError
from rayembed.contract.contract import Contract, beginning_ids, end_id
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.model.backbone import DECODERS, most_positions, read_config
from rayembed.model.configuration import ModelConfig

logger = logging.getLogger(__name__)

MODULES_FILE = "modules.json"
_POOLINGS = {"mean": "mean", "cls": "cls", "weightedmean": "weighted_mean", "lasttoken": "eos"}
_OLD_MODES = {  # True or False each, before release 6
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class ModulesFolder:
    """What a folder of sentence-transformers declares.

    Attributes:
        backbone: folder of the transformer and its tokenizer.
        settings: keys of a recipe that the folder decides, under `contract` and `model`.
    """

    backbone: Path
    settings: dict[str, dict[str, Any]]

    @property
    def contract(self) -> Contract:
        """How its texts become tokens."""
        return Contract(**self.settings["contract"])

    @property
    def model(self) -> ModelConfig:
        """Its attention and pooling."""
        return ModelConfig(**self.settings["model"])


def is_modules_folder(folder: Path) -> bool:
    """Whether sentence-transformers wrote the folder; a checkpoint of this library has modules of its own."""
    path = folder / MODULES_FILE
    return path.is_file() and '"rayembed.' not in path.read_text()


def read_modules(folder: Path) -> ModulesFolder:
    """What a folder of sentence-transformers declares.

    Raises:
        CheckpointError: it has a module, a pooling mode or a tokenizer that cannot be followed exactly.
    """
    modules = json.loads((folder / MODULES_FILE).read_text())
    names = [module["type"].rpartition(".")[2] for module in modules]
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
        wrong = next((name for name in names if name not in ("Transformer", "Pooling", "Normalize")), names)
        raise CheckpointError(
            f"{folder} has the module {wrong}, which cannot be computed here: Transformer, Pooling and "
            f"Normalize can, in this order; remove {MODULES_FILE} from a copy to take the transformer alone"
        )
    backbone, pooling = (folder / module["path"] for module in modules[:2])
    config = read_config(backbone)
    mode, include_prompt = _pooling_mode(pooling / "config.json")
    tokenizer = load_tokenizer(backbone)
    declared = _read(backbone / "sentence_bert_config.json")
    _check_tokenizer(tokenizer, declared, folder)
    general = _read(folder / "config_sentence_transformers.json")
    prompts = {name: prompt for name, prompt in (general.get("prompts") or {}).items() if prompt}
    if "passage" in prompts:
        prompts.setdefault("document", prompts["passage"])
    limits = (declared.get("max_seq_length") or tokenizer.model_max_length, most_positions(backbone))
    contract: dict[str, Any] = {
        "append_eos": tokenizer("")["input_ids"][-1:] == [end_id(tokenizer)],
        "pool_instruction": include_prompt,
        "max_length": min(limit for limit in (*limits, config.max_position_embeddings) if limit),
        "instructions": {"query": ""} | prompts,
    }
    if prompts:
        contract["instruction_template"] = "{instruction}"
    is_causal = config.model_type in DECODERS and getattr(config, "is_causal", True)
    model = {"attention": "causal" if is_causal else "bidirectional", "pooling": {"type": mode}}
    if "Normalize" not in names:
        logger.info("%s does not scale its vectors; here they have length 1, for cosines", folder)
    if default := general.get("default_prompt_name"):
        logger.info("%s puts its prompt %r before every text; here name it as the task", folder, default)
    return ModulesFolder(backbone, {"contract": contract, "model": model})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _pooling_mode(path: Path) -> tuple[str, bool]:
    settings = _read(path)
    modes = settings.get("pooling_mode") or [mode for key, mode in _OLD_MODES.items() if settings.get(key)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(
            f"{path} pools by {' and '.join(modes)}; one of {', '.join(_POOLINGS)} can be computed here"
        )
    return _POOLINGS[modes[0]], settings.get("include_prompt", True)


def _check_tokenizer(tokenizer: Any, declared: dict[str, Any], folder: Path) -> None:
    around = tokenizer("")["input_ids"]
    beginning = beginning_ids(tokenizer)
    if around not in (beginning, [*beginning, end_id(tokenizer)]):
        raise CheckpointError(
            f"the tokenizer of {folder} puts {tokenizer.convert_ids_to_tokens(around)} around a text; a "
            "contract holds one beginning and one end token"
        )
    if declared.get("do_lower_case") and tokenizer.tokenize("Aa") != tokenizer.tokenize("aa"):
        raise CheckpointError(
            f"{folder} lowers the case of texts before its tokenizer, which does not; set do_lower_case of "
            "sentence_bert_config.json to false and add the normalizer Lowercase to tokenizer.json"
        )
