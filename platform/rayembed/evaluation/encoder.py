"""The inference engine as an mteb encoder, with an explicit instruction policy.

The policy has one rule per side. Queries, and every text of a symmetric task (STS, classification,
clustering), get the instruction that the checkpoint was trained with for this task or its source, else the
prompt of the task. Documents get none, unless the checkpoint was trained with instructions on them.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import mteb
import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult
from mteb.types import EncodeKwargs, PromptType

from rayembed.inference.engine import Engine

# Rows that mteb hands over at a time; the engine makes its own batches from all of them.
_ENCODE_OPTIONS: EncodeKwargs = {"batch_size": 1024, "show_progress_bar": False}


@dataclass(frozen=True)
class InstructionPolicy:
    """Instructions of one task.

    Attributes:
        query: on queries, or on every text of a task without sides.
        document: on documents.
        origin: the checkpoint's contract or the prompt of the task.
    """

    query: str | None
    document: str | None
    origin: Literal["contract", "task"]


class EngineEncoder(AbsEncoder):
    """mteb's `EncoderProtocol` over an `Engine`.

    Args:
        engine: a loaded checkpoint.
        label: name of the model in mteb's results.
    """

    def __init__(self, engine: Engine, label: str):
        self.engine = engine
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

    def policy(self, task: TaskMetadata) -> InstructionPolicy:
        """Instructions that this checkpoint uses on `task`."""
        contract = self.engine.contract
        for key in (task.name, task.dataset["path"]):
            if key in contract.instructions:
                document = contract.instruction_for(key, side="document")
                return InstructionPolicy(contract.instruction_for(key), document, "contract")
        return InstructionPolicy(self.get_instruction(task, PromptType.query) or None, None, "task")

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
        policy = self.policy(task_metadata)
        instruction = policy.document if prompt_type == PromptType.document else policy.query
        texts = [text for batch in inputs for text in batch["text"]]
        return self.engine.encode(texts, instruction=instruction).vectors


def evaluate_task(model: Any, task: mteb.AbsTask) -> TaskResult:
    """Score one mteb model on one task in this process; the instructions used are kept beside the scores."""
    evaluation = mteb.evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs=_ENCODE_OPTIONS.copy(),
    )
    result = evaluation.task_results[0]
    if isinstance(model, EngineEncoder):
        for entries in result.scores.values():
            for entry in cast(list[dict[str, Any]], entries):
                entry["instructions"] = asdict(model.policy(task.metadata))
    return result
