"""The inference engine as an mteb encoder, with an explicit instruction policy."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import mteb
import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult
from mteb.types import EncodeKwargs, PromptType

from rayembed.contract import Contract
from rayembed.engine.engine import Encoded
from rayembed.evaluation.instructions import InstructionPolicy, Instructions
from rayembed.evaluation.samples import keep_samples

# Rows that mteb hands over at a time; the engine makes its own batches from all of them.
ENCODE_OPTIONS: EncodeKwargs = {"batch_size": 1024, "show_progress_bar": False}


OURS = "rayembed"


class TextEngine(Protocol):
    """An `rayembed.engine.Engine`, or an endpoint that looks like one."""

    contract: Contract
    digest: str

    @property
    def precision(self) -> str | None:
        """Number format of the weights, where it is known."""

    @property
    def dimensions(self) -> int:
        """Width of the vectors."""

    def encode(self, texts: Sequence[str], *, instruction: str | None = None) -> Encoded:
        """Embed texts in the order given."""


class EngineEncoder(AbsEncoder):
    """mteb's `EncoderProtocol` over an engine.

    Args:
        engine: a loaded checkpoint or an endpoint.
        label: name of the model in mteb's results.
        policy: which instruction each side of a task gets.
    """

    def __init__(self, engine: TextEngine, label: str, policy: InstructionPolicy | None = None):
        self.engine = engine
        self.policy = policy or InstructionPolicy()
        self.tokens = 0
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"rayembed/{label}",
                "revision": engine.digest,
                "similarity_fn_name": ScoringFunction.COSINE,
                "embed_dim": engine.dimensions,
                "modalities": ["text"],
                "use_instructions": True,
            }
        )

    def instructions(self, task: TaskMetadata) -> Instructions:
        """Instructions that the policy gives this checkpoint on `task`."""
        return self.policy.instructions(task, self.engine.contract)

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """Instruction of one side of `task`."""
        sides = self.instructions(task)
        return sides.document if prompt_type == PromptType.document else sides.query

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> np.ndarray:
        """Embed the texts of all batches of `inputs`; float32 unit vectors of shape (texts, dimensions)."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embed(texts, self.instruction(task_metadata, prompt_type))

    def embed(self, texts: Sequence[str], instruction: str | None) -> np.ndarray:
        """Embed texts under one instruction; counts their tokens in `tokens`."""
        encoded = self.engine.encode(texts, instruction=instruction)
        self.tokens += sum(encoded.token_counts)
        return encoded.vectors


def evaluate_task(model: Any, task: mteb.AbsTask, encoder: EngineEncoder | None = None) -> TaskResult:
    """Score one mteb model on one task in this process.

    The entries of the result have a key `rayembed` with the instructions used, the number format, and what
    the score is the mean of. mteb's files must not have it: some metrics of mteb are called precision, too.

    Args:
        model: an mteb encoder or search model.
        task: a task of any type.
        encoder: what made the vectors that `model` searches; by default `model` itself, where it is one.
    """
    samples, predicted = keep_samples(task)
    evaluation = mteb.evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs=ENCODE_OPTIONS.copy(),
        prediction_folder=Path() if predicted else None,  # lets mteb hand its predictions over
    )
    result = evaluation.task_results[0]
    if encoder is None and isinstance(model, EngineEncoder):
        encoder = model
    for split, entries in result.scores.items():
        for entry in cast(list[dict[str, Any]], entries):
            entry[OURS] = {"samples": samples.get((split, entry["hf_subset"]), {})}
            if encoder is not None:
                entry[OURS]["precision"] = encoder.engine.precision
                entry[OURS]["instructions"] = asdict(encoder.instructions(task.metadata))
    return result
