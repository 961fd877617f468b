"""A folder of sentence-transformers in this library's terms, read and written.

    modules.json                        what is here
    Transformer, path ""                the backbone, with its tokenizer
    Pooling, path 1_Pooling             model.pooling: mean, cls, weighted_mean or eos (lasttoken)
    Normalize, path 2_Normalize         nothing: vectors always have length 1
    max_seq_length                      contract.max_length
    prompts                             contract.instructions, whose template is the bare prompt
    include_prompt                      contract.pool_instruction

Nothing of sentence-transformers itself is imported. Other modules, such as Dense, are refused by name. A
checkpoint is written in this form only where these modules give its vectors: `plain_modules_problem` says why
one cannot be.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rayembed.common.errors import CheckpointError, RequestError
from rayembed.common.paths import atomic_write
from rayembed.contract.contract import Contract, beginning_ids, end_id
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.model.backbone import DECODERS, POSITIONS_BEHIND_PADDING, most_positions, read_config
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
_PROBES = ("a", "Plain words, 3.14", " hello  world ", "a\nb\tc", "中文 é 🙂")


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
    looks_back = getattr(config, "is_causal", True) and not _is_gemma_turned(config)
    is_causal = config.model_type in DECODERS and looks_back
    model = {"attention": "causal" if is_causal else "bidirectional", "pooling": {"type": mode}}
    if "Normalize" not in names:
        logger.info("%s does not scale its vectors; here they have length 1, for cosines", folder)
    if default := general.get("default_prompt_name"):
        logger.info("%s puts its prompt %r before every text; here name it as the task", folder, default)
    return ModulesFolder(backbone, {"contract": contract, "model": model})


def _is_gemma_turned(config: Any) -> bool:
    """Whether a configuration says by the key of its architecture that attention is bidirectional."""
    return bool(getattr(config, "use_bidirectional_attention", False))


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


def plain_modules_problem(
    checkpoint: Path, model: ModelConfig, contract: Contract, prompts: Iterable[str]
) -> str | None:
    """Why a checkpoint cannot be Transformer, Pooling and Normalize with the same vectors; None: it can.

    Tokens are compared on a few texts behind each of `prompts`, with the tokenizer as others read it.
    """
    pooling = model.pooling.type
    if pooling not in _POOLINGS.values():
        return f"Pooling has no mode for the head {pooling}"
    config = read_config(checkpoint / "backbone")
    if config.model_type in DECODERS and model.attention != "causal" and not _is_gemma_turned(config):
        return "other programs read a decoder as causal, and its attention is bidirectional"
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        plain_tokenizer(checkpoint, contract).save_pretrained(folder)
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    any_prompt = () if contract.prompts else (contract.prefix("find"),)
    prompts = sorted({"", *any_prompt, *prompts})
    if problem := tokens_problem(checkpoint, contract, prompts, theirs):
        return problem
    if contract.pool_instruction or pooling == "eos":
        return None
    if pooling == "weighted_mean" and any(prompts):
        return "weights begin behind the prompt here, and at the first token there"
    ours = load_tokenizer(checkpoint / "tokenizer")
    for prompt in filter(None, prompts):
        alone = theirs(prompt)["input_ids"]
        length = len(alone) - (alone[-1] in theirs.all_special_ids)
        wanted = contract.tokenize_prefixed(ours, _PROBES[:1], prompt).pool_starts[0]
        if length != wanted:
            return (
                f"the prompt {prompt!r} has {length} tokens alone and {wanted} before a text, so other "
                "tokens would be pooled"
            )
    return None


def tokens_problem(
    checkpoint: Path, contract: Contract, prompts: Iterable[str], theirs: PreTrainedTokenizerBase
) -> str | None:
    """Where a tokenizer alone departs from the contract, on a few texts behind each of `prompts`."""
    if contract.append_eos and contract.truncation != "keep_eos":
        return "its contract cuts the end token off long texts, and a tokenizer keeps it"
    config = read_config(checkpoint / "backbone")
    ours = load_tokenizer(checkpoint / "tokenizer")
    texts = [*_PROBES, " ".join(map(str, range(contract.max_length)))]
    for prompt in prompts:
        try:
            wanted = contract.tokenize_prefixed(ours, texts, prompt)
        except RequestError as error:
            return str(error)
        options = {"truncation": True, "max_length": contract.max_length}
        found = theirs([prompt + text for text in texts], **options)["input_ids"]
        for text, here, there in zip(texts, wanted.input_ids, found, strict=True):
            if here != there:
                return f"its tokenizer alone gives other tokens for {(prompt + text)[:60]!r}"
            if config.model_type in POSITIONS_BEHIND_PADDING and config.pad_token_id in here:
                return f"token {config.pad_token_id} of its texts is padding to {config.model_type}"
    return None


def write_modules(
    checkpoint: Path, folder: Path, model: ModelConfig, contract: Contract, dimensions: int
) -> None:
    """Write the modules of a checkpoint that has no `plain_modules_problem`; prompts are the caller's.

    Pooling is written in the older form, which every release and other servers read.
    """
    shutil.copytree(checkpoint / "backbone", folder, dirs_exist_ok=True)
    config = _read(folder / "config.json") | {"dtype": "float32"}  # of the computation, as here
    plain_tokenizer(checkpoint, contract).save_pretrained(folder)
    names = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(names.items())
    ]
    pooling = {
        "word_embedding_dimension": dimensions,
        **{key: _POOLINGS.get(mode) == model.pooling.type for key, mode in _OLD_MODES.items()},
        "include_prompt": contract.pool_instruction,
    }
    files = {
        "config.json": config,
        MODULES_FILE: modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": contract.max_length, "do_lower_case": False},
    }
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir()
    for name, content in files.items():
        atomic_write(folder / name, json.dumps(content, indent=2) + "\n")


def plain_tokenizer(checkpoint: Path, contract: Contract) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, which itself puts the contract's tokens around a text.

    It has no chat template: sentence-transformers would make each text a conversation.
    """
    tokenizer: Any = load_tokenizer(checkpoint / "tokenizer")
    beginning, end = beginning_ids(tokenizer), [end_id(tokenizer)] if contract.append_eos else []
    if tokenizer("")["input_ids"] != [*beginning, *end]:
        pieces = {index: tokenizer.convert_ids_to_tokens(index) for index in (*beginning, *end)}
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[*map(pieces.get, beginning), "$A", *map(pieces.get, end)],
            special_tokens=[(piece, index) for index, piece in pieces.items()],
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end_id(tokenizer))
    tokenizer.chat_template, tokenizer.truncation_side = None, "right"
    return tokenizer


def prompts_by_name(contract: Contract) -> dict[str, str]:
    """Prompts by task name; mteb prefers `NAME-document` for the documents of a task called NAME."""
    prompts = {"query": "", "document": ""}
    for name in contract.instructions:
        prompts[name] = contract.prefix(contract.instruction_for(name))
        if name not in prompts.keys() & {"query", "document"}:
            prompts[f"{name}-document"] = contract.prefix(contract.instruction_for(name, side="document"))
    return prompts
