"""How training runs, whatever it learns."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen, Precision

SavedPrecision = Literal["fp32", "bf16", "fp16"]
TrackerName = Literal["mlflow", "wandb"]

_DEEPSPEED_KEYS = ("zero_optimization", "communication_data_type", "prescale_gradients", "comms_logger")
# Where weights and optimizer state lie decides how they are read for checkpoints.
_ZERO_KEYS_OF_OURS = ("stage", "offload_param", "offload_optimizer")


class TrainingConfig(Frozen):
    """How training runs, whatever it learns."""

    workers: int = Field(1, ge=1, description="training processes; each takes a GPU where `device` is cuda")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto",
        description=(
            "what a worker computes on; auto: a GPU if the cluster has any or its autoscaler can start some, "
            "else the CPU. cuda waits for nodes with GPUs that join later"
        ),
    )
    accelerator_type: str | None = Field(
        None, description="model of the workers' GPUs as Ray names it, such as H100; None: any"
    )
    worker_labels: dict[str, str] = Field(
        {},
        description='labels of the nodes that workers run on, as Ray\'s label selectors: `market: "!spot"`',
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers to continue with when nodes leave; None: wait for all `workers`",
    )
    resize_seconds: float = Field(
        60, ge=0, description="with `min_workers`: seconds between checks for new nodes"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs reserved per worker")
    threads_per_worker: int | None = Field(
        None, ge=1, description="None: the machine's cores divided by its workers"
    )
    precision: Precision = Field(
        "auto", description="number format; auto: bf16 where the processor multiplies it natively, else fp32"
    )
    saved_precision: SavedPrecision = Field(
        "fp32", description="number format of the finished model's files; adapters are added in fp32 before"
    )
    tokens_per_chunk: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description=(
            "encode a worker's texts in chunks of at most this many tokens (GradCache). Saves "
            "memory, costs a second forward pass. None: all at once; auto: the fastest that fits, measured "
            "at the longest batch before a stage begins"
        ),
    )
    activation_checkpointing: bool | Literal["auto"] = Field(
        False,
        description=(
            "keep only each layer's and the head's input for the backward pass; recompute the rest. "
            "auto: as `tokens_per_chunk`"
        ),
    )
    compiled: bool = Field(
        False,
        description=(
            "compile norms and feed-forward networks with torch, for GPUs; takes up to a minute "
            "in the first step"
        ),
    )
    on_bad_batch: Literal["stop", "skip"] = Field(
        "stop", description="if a loss or gradient is not finite: end the run, or skip the step"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description=(
            "adamw_8bit keeps Adam's moments in 8 bits, a quarter of the memory (needs "
            "rayembed[bitsandbytes])"
        ),
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    deepspeed: dict[str, Any] = Field(
        {},
        description=(
            "further settings of DeepSpeed's own, such as `zero_optimization: {overlap_comm: true}`; "
            "those that rayembed sets are refused"
        ),
    )
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many of a stage's newest checkpoints to keep")
    checkpoint_storage: str | None = Field(
        None,
        description=(
            "folder or URI (s3, gs, abfss) for checkpoints and lanes, writable by all nodes; "
            "None: the run folder"
        ),
    )
    log_every: int = Field(1, ge=1, description="steps between lines of metrics.jsonl and of progress")
    changed_data: Literal["refuse", "keep"] = Field(
        "refuse",
        description=(
            "if a source's files changed since the run began: refuse to continue, or keep the "
            "rows prepared at the start"
        ),
    )
    trackers: tuple[TrackerName, ...] = Field(
        (),
        description=(
            "experiment trackers that get the metrics too; without a server they write to the run folder"
        ),
    )
    max_failures: int = Field(3, ge=-1, description="worker failures that a run survives; -1: any number")

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"training.min_workers {self.min_workers} is above training.workers {self.workers}, the most "
                "there are; lower it or raise workers"
            )
        if self.accelerator_type and self.device == "cpu":
            raise ValueError(
                f"training.accelerator_type {self.accelerator_type} is a GPU and training.device is cpu; "
                "remove one of them"
            )
        zero = self.deepspeed.get("zero_optimization", {})
        refused = [
            *(f"training.deepspeed.{key}" for key in self.deepspeed if key not in _DEEPSPEED_KEYS),
            *(f"training.deepspeed.zero_optimization.{key}" for key in _ZERO_KEYS_OF_OURS if key in zero),
        ]
        if refused:
            raise ValueError(
                f"{refused[0]} cannot be set here: rayembed has settings of its own, such as zero_stage, "
                f"precision and batch_size; training.deepspeed takes {', '.join(_DEEPSPEED_KEYS)}"
            )
        if self.precision == "fp16":
            raise ValueError(
                "training.precision fp16 would need a scaled loss, which spoils exact gradients; "
                "train in bf16 or fp32, and load the model with precision fp16"
            )
        measures = "auto" in (self.tokens_per_chunk, self.activation_checkpointing)
        if measures and self.zero_stage == 3 and self.workers > 1:
            raise ValueError(
                "training.zero_stage 3 shares the weights among workers, and auto measures one of them "
                "alone; give tokens_per_chunk and activation_checkpointing"
            )
        if self.optimizer == "adamw_8bit" and self.zero_stage == 3:
            raise ValueError(
                "training.optimizer adamw_8bit works up to training.zero_stage 2; lower it, or set optimizer "
                "to adamw"
            )
        if self.compiled and self.zero_stage == 3:
            raise ValueError(
                "training.compiled and training.zero_stage 3 exclude each other: compiled kernels do not "
                "wait for the weights that ZeRO 3 gathers; leave one of them out"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """Workers that training goes on with; each then has the largest share of a batch."""
        return self.min_workers or self.workers

    @property
    def chunk_tokens(self) -> int | None:
        """`tokens_per_chunk`, once `auto` is decided."""
        assert self.tokens_per_chunk != "auto", "is decided before a stage begins"
        return self.tokens_per_chunk
