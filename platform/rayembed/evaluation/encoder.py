"""The inference engine as an mteb encoder, with an explicit instruction policy."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol, cast

import mteb
import numpy as np
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult
from mteb.types import EncodeKwargs, PromptType

from rayembed.contract import Contract
from rayembed.engine.engine import Encoded
from rayembed.evaluation.instructions import InstructionPolicy, Instructions

_MOST_QUERIES_KEPT = 20_000
# Rows that mteb hands over at a time; the engine makes its own batches from all of them.
ENCODE_OPTIONS: EncodeKwargs = {"batch_size": 1024, "show_progress_bar": False}


class TextEngine(Protocol):
    """An `inference.engine.Engine`, or an endpoint that looks like one."""

    contract: Contract
    digest: str

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


def evaluate_task(
    model: Any, task: mteb.AbsTask, instructions: Instructions | None = None, *, precision: str = "auto"
) -> TaskResult:
    """Score one mteb model on one task in this process; the instructions used are kept with the scores.

    Args:
        model: an mteb encoder or search model.
        task: a task of any type.
        instructions: what the model was given; by default those of an `EngineEncoder`.
        precision: number format that was asked for, for the record.
    """
    per_query = _keep_per_query(task)
    evaluation = mteb.evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs=ENCODE_OPTIONS.copy(),
    )
    result = evaluation.task_results[0]
    if instructions is None and isinstance(model, EngineEncoder):
        instructions = model.instructions(task.metadata)
    for split, entries in result.scores.items():
        for entry in cast(list[dict[str, Any]], entries):
            if instructions is not None:
                entry |= {"instructions": asdict(instructions), "precision": precision}
            if (place := (split, entry["hf_subset"])) in per_query:
                entry["per_query"] = per_query[place]
    return result


def _keep_per_query(task: mteb.AbsTask) -> dict[tuple[str, str], dict[str, float]]:
    """Let a search task leave the main score of each query in the returned mapping, by split and subset.

    mteb hands them to a hook of the task and then forgets them; a paired test between two models needs them.
    """
    kept: dict[tuple[str, str], dict[str, float]] = {}
    if not isinstance(task, AbsTaskRetrieval):
        return kept
    measure = task.metadata.main_score.replace("_at_", "_cut_")
    hook = type(task).task_specific_scores

    def keep(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> dict[str, float]:
        values = {query: found[measure] for query, found in scores.items() if measure in found}
        if values and len(values) <= _MOST_QUERIES_KEPT:
            kept[hf_split, hf_subset] = {query: round(value, 5) for query, value in values.items()}
        return hook(task, scores, qrels, results, hf_split, hf_subset)

    task.task_specific_scores = keep  # type: ignore[method-assign]
    return kept
