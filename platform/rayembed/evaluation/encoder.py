"""The inference engine as an mteb encoder, with an explicit instruction policy."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import mteb
import numpy as np
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult
from mteb.types import EncodeKwargs, PromptType

from rayembed.contract import Contract
from rayembed.engine.engine import Encoded
from rayembed.evaluation.instructions import InstructionPolicy, Instructions

_MOST_SAMPLES_KEPT = 20_000
# Rows that mteb hands over at a time; the engine makes its own batches from all of them.
ENCODE_OPTIONS: EncodeKwargs = {"batch_size": 1024, "show_progress_bar": False}


OURS = "rayembed"


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
    """Score one mteb model on one task in this process.

    The entries of the result have a key `rayembed` with the instructions used, the precision, and the scores
    of queries or rows. mteb's files must not have it: some metrics of mteb are called precision, too.

    Args:
        model: an mteb encoder or search model.
        task: a task of any type.
        instructions: what the model was given; by default those of an `EngineEncoder`.
        precision: number format that was asked for, for the record.
    """
    samples, sorts = _keep_samples(task)
    evaluation = mteb.evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs=ENCODE_OPTIONS.copy(),
        prediction_folder=Path() if sorts else None,  # lets mteb hand its predictions over
    )
    result = evaluation.task_results[0]
    if instructions is None and isinstance(model, EngineEncoder):
        instructions = model.instructions(task.metadata)
    for split, entries in result.scores.items():
        for entry in cast(list[dict[str, Any]], entries):
            entry[OURS] = {"precision": precision, "samples": samples.get((split, entry["hf_subset"]), {})}
            if instructions is not None:
                entry[OURS]["instructions"] = asdict(instructions)
    return result


def _keep_samples(task: mteb.AbsTask) -> tuple[dict[tuple[str, str], dict[str, float]], bool]:
    """Let a task leave what its main score is the mean of in a mapping, by split and subset.

    These are the scores of the queries of a search task, and of the test rows of a classification task: 10
    draws of training rows that are right on a row 7 times give it 0.7. mteb hands them to a hook and forgets
    them; intervals and paired tests need them. Also returns whether the task is one of classification.
    """
    kept: dict[tuple[str, str], dict[str, float]] = {}

    def keep(split: str, subset: str, values: dict[str, float]) -> None:
        if values and len(values) <= _MOST_SAMPLES_KEPT:
            kept[split, subset] = {name: round(value, 5) for name, value in values.items()}

    if isinstance(task, AbsTaskRetrieval):
        measure = task.metadata.main_score.replace("_at_", "_cut_")
        hook = type(task).task_specific_scores

        def search(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> dict[str, float]:
            keep(
                hf_split, hf_subset, {query: one[measure] for query, one in scores.items() if measure in one}
            )
            return hook(task, scores, qrels, results, hf_split, hf_subset)

        task.task_specific_scores = search  # type: ignore[method-assign]
        return kept, False
    sorts = (
        isinstance(task, AbsTaskClassification)
        and task.metadata.main_score == "accuracy"
        and not task.is_cross_validation
    )
    if sorts:
        column = cast(AbsTaskClassification, task).label_column_name

        def sort(predictions: Any, _model: Any, _folder: Any, *, hf_split: str, hf_subset: str) -> None:
            dataset: Any = task.dataset
            rows = dataset.get(hf_subset, dataset)[hf_split]
            labels = np.asarray(rows[column])
            right = np.mean([np.asarray(draw) == labels for draw in predictions], axis=0)
            keep(hf_split, hf_subset, {str(row): value for row, value in enumerate(right.tolist())})

        task._save_task_predictions = sort  # type: ignore[assignment,method-assign]
    return kept, sorts
