"""From a stage's blend to a plan and the rows that it points into."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError, DataError, RequestError, all_mistakes
from rayembed.common.paths import fetch, file_digest, location_of
from rayembed.common.settings import differences
from rayembed.config.blend import SourceConfig
from rayembed.config.run import RunConfig
from rayembed.config.stage import StageConfig
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.lane_folder import LaneFolder
from rayembed.data.plan import PlannedBatch, PlannedSource, fingerprint, plan_batches
from rayembed.data.plan_store import stored_description, write_plan
from rayembed.data.prepared import PreparedRows
from rayembed.data.sources import SOURCES
from rayembed.data.stream import StreamSpec
from rayembed.training.distillation import other_reader
from rayembed.training.prepared_source import (
    EvaluationTexts,
    PreparedSource,
    kind_of,
    prepare_sources,
    usually_symmetric,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """What a stage trains on, resolved: its sources, and all that decides the plan.

    Attributes:
        settings: of the stage.
        sources: of its blend, in order.
        contract: how texts become tokens.
        seed: of the run.
        plan_seed: of the plan, another one for each stage.
        keeps_changed: whether a stage goes on with the rows of its start when files changed.
        storage: folder or URI for lanes; None: the stage's folder.
        run_name: a folder below it.
        workers: that share a batch.
    """

    settings: StageConfig
    sources: tuple[PreparedSource, ...]
    contract: Contract
    seed: int
    plan_seed: int
    keeps_changed: bool
    storage: str | None
    run_name: str
    workers: int

    def prepare(self, folder: Path, tokenizer: str) -> StreamSpec:
        """Build, mine and plan; what is there and still fits is reused.

        Args:
            folder: the stage's folder; the plan goes into `plan/` in it.
            tokenizer: where workers load the tokenizer from.

        Raises:
            ConfigError, DataError: a source is unreadable, empty or too small, or changed since the stage was
                planned.
        """
        stage, plan = self.settings, folder / "plan"
        now = {source.name: source.origin() for source in self.sources}
        origins = self._origins(plan, now)
        paths = prepare_sources(self.sources, origins, now)
        rows = [PreparedRows.open(path) for path in paths]
        if stage.kind == "contrastive":
            for entry, source in zip(stage.blend, rows, strict=True):
                check_negatives(source, entry)
                check_instructions(source, entry, self.contract, tokenizer)
            check_scores(rows, stage)
        description = self._description(origins, paths)
        stored = stored_description(plan)
        if stored is None:
            planned = [planned_source(*pair) for pair in zip(stage.blend, rows, strict=True)]
            write_plan(plan, self._batches(planned), description)
            logger.info("stage %s: plan of %d steps of %d rows", stage.name, stage.steps, stage.batch_size)
        elif changes := list(differences(stored, description)):
            raise self._changed(plan, changes)
        place = f"{self.run_name}/{folder.name}/" if self.storage else ""
        return StreamSpec(
            plan=plan,
            sources=paths,
            blend=stage.blend,
            contract=self.contract,
            tokenizer=tokenizer,
            seed=self.seed,
            lanes=LaneFolder.of(
                self.storage or location_of(folder),
                f"{place}lanes-{fingerprint(description)[:16]}",
                steps=stage.steps,
                batch_size=stage.batch_size,
                workers=self.workers,
            ),
            teacher=other_reader(stage, self.contract, tokenizer) if tokenizer else None,
        )

    def _origins(self, plan: Path, now: dict[str, Any]) -> dict[str, Any]:
        """What each source is made from, which must be what it was when the stage was planned."""
        stored = stored_description(plan)
        changes = list(differences(stored["sources"], now)) if stored else []
        if not stored or not changes:
            return now
        if not self.keeps_changed:
            raise self._changed(plan, changes)
        logger.warning(
            "stage %s keeps to the rows of its start, though %s (training.changed_data is keep)",
            self.settings.name,
            "; ".join(changes),
        )
        return stored["sources"]

    def _description(self, origins: dict[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
        """All that decides the plan, noted down next to it."""
        stage = self.settings
        return {
            "sources": origins,
            "rows": {
                entry.source: file_digest(fetch(path)) for entry, path in zip(stage.blend, paths, strict=True)
            },
            "blend": {
                entry.source: entry.model_dump(include={"weight", "cap", "epochs", "in_batch_negatives"})
                for entry in stage.blend
            },
            "batching": stage.model_dump(
                include={"batch_size", "steps", "batching", "sub_batch_size", "size_temperature"}
            ),
            "seed": self.plan_seed,
        }

    def _batches(self, sources: Sequence[PlannedSource]) -> Iterator[PlannedBatch]:
        stage = self.settings
        return plan_batches(
            sources,
            batch_size=stage.batch_size,
            steps=stage.steps,
            seed=self.plan_seed,
            batching=stage.batching,
            sub_batch_size=stage.sub_batch_size,
            size_temperature=stage.size_temperature,
        )

    def _changed(self, plan: Path, changes: Sequence[str]) -> DataError:
        return DataError(
            f"stage {self.settings.name} was planned in {plan} and since then: {'; '.join(changes)}. "
            "Put back what it was; or set training.changed_data=keep to continue on the rows prepared at the "
            "start; or set name to start another run"
        )


def resolve_data(config: RunConfig) -> tuple[StageData, ...]:
    """The data of every stage of a run.

    Raises:
        ConfigError: a source is unknown, or used in a way that its layout does not allow.
    """
    check_sources(config)
    against = EvaluationTexts(config.data, [entry.source for stage in config.stages for entry in stage.blend])
    return tuple(
        StageData(
            settings=stage,
            sources=tuple(
                PreparedSource.of(
                    entry,
                    config.data,
                    against,
                    config.seed,
                    None if stage.kind == "contrastive" else stage.texts,
                )
                for entry in stage.blend
            ),
            contract=config.contract,
            seed=config.seed,
            plan_seed=config.seed + index,
            keeps_changed=config.training.changed_data == "keep",
            storage=config.training.checkpoint_storage,
            run_name=config.name,
            workers=config.training.workers,
        )
        for index, stage in enumerate(config.stages)
    )


def check_sources(config: RunConfig) -> None:
    """Refuse blends that name an unknown source or use one in a way that its layout does not allow.

    Raises:
        ConfigError: all mistakes, each with the source and what to do.
    """
    mistakes = []
    for stage in config.stages:
        for entry in stage.blend:
            try:
                kind = kind_of(config.data, entry.source)
            except ConfigError as error:
                mistakes.append(f"stage {stage.name}: {error}")
                continue
            if problem := _misuse(stage, entry, kind, built_in=entry.source in SOURCES):
                mistakes.append(f"stage {stage.name}: source {entry.source} {problem}")
            elif entry.instruction and entry.symmetric != usually_symmetric(config.data, entry):
                logger.warning(
                    "stage %s, source %s: symmetric is %s; NV-Embed puts the instruction in front of the "
                    "documents as well where they could change places with the queries, and only there",
                    stage.name,
                    entry.source,
                    str(entry.symmetric).lower(),
                )
    if mistakes:
        raise ConfigError(all_mistakes(f"recipe {config.name}", mistakes))


def planned_source(entry: SourceConfig, rows: PreparedRows) -> PlannedSource:
    """What the plan needs to know of an entry of the blend."""
    return PlannedSource(
        name=entry.source,
        num_rows=len(rows),
        in_batch_negatives=entry.in_batch_negatives,
        weight=entry.weight,
        cap=entry.cap,
        epochs=entry.epochs,
        keys=rows.clash_keys,
    )


def check_instructions(rows: PreparedRows, entry: SourceConfig, contract: Contract, tokenizer: str) -> None:
    """Raise DataError where an instruction that a row brings leaves no room for its text."""
    instructions = sorted(rows.instructions()) if tokenizer else []  # a plan is shown without one
    loaded = load_tokenizer(tokenizer) if instructions else None
    for instruction in instructions:
        try:
            contract.tokenize(loaded, ["a"], instruction)
        except RequestError as error:
            raise DataError(f"source {entry.source}, instruction {instruction[:60]!r}: {error}") from error


def check_negatives(rows: PreparedRows, entry: SourceConfig) -> None:
    """Refuse rows that would have nothing to be told apart from.

    Raises:
        DataError: how many rows, and what to do.
    """
    if entry.in_batch_negatives or entry.negatives_per_query == 0:
        return
    without = rows.rows_without_negatives()
    if without:
        raise DataError(
            f"source {entry.source}: {without} of {len(rows)} rows have no negatives and in-batch "
            "negatives are off; add `mining: {method: bm25}` to its entry or turn in_batch_negatives on"
        )


def check_scores(sources: Sequence[PreparedRows], stage: StageConfig) -> None:
    """Refuse to learn from a teacher's scores where no row has any.

    Raises:
        DataError: what to do.
    """
    learns = any(loss.type == "score_distillation" for loss in stage.loss)
    if learns and not any(rows.has_teacher_scores() for rows in sources):
        raise DataError(
            f"stage {stage.name}: score_distillation learns from a teacher's scores, and no row of its blend "
            "has teacher_scores; mine with a teacher, give pos_scores and neg_scores, or remove the loss"
        )


def _misuse(stage: StageConfig, entry: SourceConfig, kind: str, *, built_in: bool) -> str | None:
    if kind == "scores" and built_in:
        return "is for evaluation only; remove it from the blend"
    if stage.kind != "contrastive":
        return None
    if kind == "labels":
        if entry.mining is not None:
            return "has labels, its negatives are other classes; remove mining"
        if entry.labels != "label" and entry.in_batch_negatives and entry.negatives_per_query:
            return (
                "has labels, and with in-batch negatives a row's negatives may be of another row's class; "
                "set in_batch_negatives: false, negatives_per_query: 0, or labels: label"
            )
    elif entry.labels == "label":
        return f"has {kind} and no labels; remove labels: label"
    return None
