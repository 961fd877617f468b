"""How training runs, whatever it learns."""

from typing import Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen
from rayembed.model.configuration import Precision

TrackerName = Literal["mlflow", "wandb"]


class TrainingConfig(Frozen):
    """How training runs, whatever it learns."""

    workers: int = Field(1, ge=1, description="training processes; each takes a GPU where there are any")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers to go on with when nodes leave, up to `workers` again when nodes join; "
        "None: wait for all `workers`",
    )
    resize_seconds: float = Field(
        60, ge=0, description="with min_workers: seconds between looks for nodes that joined"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    threads_per_worker: int | None = Field(
        None, ge=1, description="None: the machine's cores divided by its workers"
    )
    precision: Precision = Field(
        "auto", description="of the weights; auto: bf16 where the processor multiplies it natively, else fp32"
    )
    tokens_per_chunk: int | None = Field(
        None,
        ge=1,
        description="encode a worker's texts in chunks of at most so many tokens, so that memory does not "
        "grow with the batch; a longer text is a chunk of its own. Costs a second forward pass. None: all "
        "at once",
    )
    activation_checkpointing: bool = Field(
        False, description="keep only each layer's input for the backward pass and compute the rest again"
    )
    compiled: bool = Field(
        False,
        description="build kernels for norms and feed-forward networks with torch's compiler, up to a minute "
        "in the first step; for GPUs",
    )
    on_bad_batch: Literal["stop", "skip"] = Field(
        "stop", description="when a loss or gradient is not finite: end the run, or leave out that step"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints of a stage that are kept")
    checkpoint_storage: str | None = Field(
        None,
        description="folder or URI (s3, gs, abfss) below which checkpoints are kept, by run and stage, which "
        "all nodes can write; None: in the run folder",
    )
    log_every: int = Field(1, ge=1, description="steps between lines of metrics.jsonl and the progress line")
    changed_data: Literal["refuse", "keep"] = Field(
        "refuse",
        description="when the files of a source changed since the run began: refuse to continue, or keep to "
        "the rows that were prepared at the start",
    )
    trackers: tuple[TrackerName, ...] = Field(
        (),
        description="experiment trackers that get the metrics as well; without a server of theirs they keep "
        "files in the run folder",
    )
    cache_tokens: bool = Field(
        False,
        description="tokenise every source once, to disk, in place of the rows of a step at every step",
    )
    max_failures: int = Field(
        3, ge=-1, description="worker failures survived in one submission; -1: any number"
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"training.min_workers {self.min_workers} is above training.workers {self.workers}, the most "
                "there are; lower it or raise workers"
            )
        if self.compiled and self.zero_stage == 3:
            raise ValueError(
                "training.compiled and training.zero_stage 3 exclude each other: compiled kernels do not "
                "wait for the weights that ZeRO 3 gathers; leave one of them out"
            )
        return self
