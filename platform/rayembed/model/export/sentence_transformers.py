"""A checkpoint as a sentence-transformers model.

Where the modules of sentence-transformers itself give the same vectors, the exported folder has those
(modules_json.py) and loads without this library. Otherwise it is the checkpoint itself, whose `modules.json`
has one module by import path, `RayembedModule` of the installed package; no code travels in the folder. Since
release 6 sentence-transformers imports modules of other packages only with `trust_remote_code=True`;
`load_sentence_transformer` needs no such flag because the caller names the package.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from transformers import PreTrainedTokenizerBase

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_directory, atomic_write
from rayembed.contract import Contract
from rayembed.contract.packing import pack
from rayembed.model.checkpoint import LoadedModel, load_model, read_configuration, write_model
from rayembed.model.export.card import model_card
from rayembed.model.export.modules_json import (
    MODULES_FILE,
    plain_modules_problem,
    prompts_by_name,
    write_modules,
)

logger = logging.getLogger(__name__)

SETTINGS_FILE = "config_sentence_transformers.json"


class RayembedModule(InputModule):
    """The whole model as one module: contract, packed backbone, pooling head and normalisation."""

    tokenizer: PreTrainedTokenizerBase

    def __init__(self, model: LoadedModel):
        super().__init__()
        self.embedder = model.embedder
        self.tokenizer = model.tokenizer
        self.contract = model.contract
        self.max_seq_length = model.contract.max_length

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read an exported folder; `model_kwargs` may hold `dtype`, which is fp32 otherwise.

        Raises:
            CheckpointError: there is no such folder or it is not a complete checkpoint.
        """
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if folder is None:
            raise CheckpointError(f"{model_name_or_path} cannot be found; give an exported folder")
        dtype = (kwargs.get("model_kwargs") or {}).get("dtype", torch.float32)
        return cls(load_model(Path(folder), dtype=dtype))

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.embedder.dimensions

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Tokenise under the contract and pack; `prompt` is the finished prefix, which is not pooled."""
        texts = [str(text) for text in inputs]
        tokenized = self.contract.tokenize_prefixed(self.tokenizer, texts, prompt or "", self.max_seq_length)
        return {"packed": pack(tokenized)}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, unit vectors of shape (N, D)."""
        device = next(self.embedder.parameters()).device
        features["sentence_embedding"] = self.embedder(features["packed"].to(device))
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the checkpoint's files into a folder that sentence-transformers has made."""
        write_model(Path(output_path), self.embedder, self.tokenizer, self.contract)


def load_sentence_transformer(folder: Path | str, **options: Any) -> SentenceTransformer:
    """A checkpoint, exported or not, as a `SentenceTransformer` with its prompts.

    Args:
        folder: checkpoint folder.
        options: arguments of `SentenceTransformer`, such as `device`.

    Raises:
        CheckpointError: the folder is not a complete checkpoint.
    """
    module = RayembedModule(load_model(Path(folder)))
    settings = _settings(module.contract)
    return SentenceTransformer(
        modules=[module],
        prompts=settings["prompts"],
        similarity_fn_name=settings["similarity_fn_name"],
        **options,
    )


def export_sentence_transformers(checkpoint: Path, out: Path, *, summary: Path | None = None) -> None:
    """Write a checkpoint with a model card as plain modules, or else as one module of this library.

    The log says which, and why.

    Args:
        checkpoint: checkpoint folder.
        out: folder to write; one of that name is replaced.
        summary: summary.json of the run, whose scores go onto the card.

    Raises:
        CheckpointError: the checkpoint is incomplete.
    """
    manifest, config = read_configuration(checkpoint)
    contract = Contract.load(checkpoint)
    settings = _settings(contract)
    scores = json.loads(summary.read_text())["tasks"] if summary else {}
    problem = plain_modules_problem(checkpoint, config, contract, settings["prompts"].values())
    with atomic_directory(out) as temporary:
        if problem is None:
            write_modules(checkpoint, temporary, config, contract, manifest["dimensions"])
        else:
            shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
            module = {"idx": 0, "name": "0", "path": "", "type": f"{__name__}.{RayembedModule.__name__}"}
            atomic_write(temporary / MODULES_FILE, json.dumps([module], indent=2) + "\n")
        atomic_write(temporary / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        card = model_card(out.name, manifest, config, contract, scores, is_plain=problem is None)
        atomic_write(temporary / "README.md", card)
    if problem is None:
        logger.info(
            "%s has plain modules, which sentence-transformers computes alone, with equal vectors", out
        )
    else:
        logger.info("%s needs rayembed where it is loaded: %s", out, problem)


def _settings(contract: Contract) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "prompts": prompts_by_name(contract),
        "default_prompt_name": None,
        "similarity_fn_name": contract.similarity,
    }
