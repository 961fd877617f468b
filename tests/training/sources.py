"""Small prepared sources, plans and streams for tests of training."""

from pathlib import Path

from rayembed.config.blend import SourceConfig
from rayembed.config.stage import StageConfig
from rayembed.contract import Contract
from rayembed.data.lane_folder import LaneFolder
from rayembed.data.plan import plan_batches
from rayembed.data.plan_store import write_plan
from rayembed.data.prepared import PreparedRows, write_index, write_rows
from rayembed.data.stream import StreamSpec
from rayembed.records.schema import pair_row, to_table
from rayembed.training.prepare import planned_source

WORDS = ["sun", "rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist", "storm", "cloud", "frost"]


def write_source(
    path: Path,
    rows: int = 24,
    negatives: int = 2,
    offset: int = 0,
    teacher: bool = False,
    instructions: tuple[str | None, ...] = (None,),
) -> Path:
    """Pairs of made-up texts; every third row shares a negative with its neighbour; instructions in turn."""
    table = to_table(
        [
            pair_row(
                f"{WORDS[index % 12]} {index + offset}?",
                [f"about {WORDS[index % 12]} number {index + offset}"],
                [f"other {WORDS[(index // 3 + n) % 12]} {offset}" for n in range(negatives)],
                dataset=path.stem,
                task_type="retrieval",
                instruction=instructions[index % len(instructions)],
            )
            | {"teacher_scores": teacher_scores(index) if teacher else None}
            for index in range(rows)
        ],
        "pairs",
    )
    write_index([write_rows([table], path.with_suffix(".arrow"))], path)
    return path


def teacher_scores(index: int) -> list[float] | None:
    """Scores of a row's positive and two negatives; every other row has them."""
    return [0.9, 0.4, 0.1 * (index % 5)] if index % 2 else None


def stage(
    *, batch_size: int = 6, steps: int = 4, negatives: int = 2, temperature: float | None = 0.1, **settings
) -> StageConfig:
    """Two sources, one with in-batch negatives and one without; temperature None leaves it to the loss."""
    short = {} if temperature is None else {"temperature": temperature}
    return StageConfig(
        name="test",
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-2,
        blend=(
            SourceConfig(
                source="one", weight=2, instruction="Find", in_batch_negatives=True,
                negatives_per_query=negatives,
            ),
            SourceConfig(
                source="two", weight=1, symmetric=True, instruction="Sort", in_batch_negatives=False,
                negatives_per_query=2,
            ),
        ),
        **short,
        **settings,
    )  # fmt: skip


def stream_spec(
    folder: Path, tokenizer: Path, config: StageConfig, teacher: bool = False, rows: int = 24
) -> StreamSpec:
    """Write sources and plan into `folder`."""
    paths = (
        write_source(folder / "one.json", rows, teacher=teacher),
        write_source(folder / "two.json", rows, offset=100),
    )
    sources = [
        planned_source(entry, PreparedRows.open(path))
        for entry, path in zip(config.blend, paths, strict=True)
    ]
    batches = plan_batches(sources, batch_size=config.batch_size, steps=config.steps, seed=3)
    write_plan(folder / "plan", batches, {"made": "for a test"})
    return StreamSpec(
        plan=folder / "plan",
        sources=paths,
        blend=config.blend,
        contract=Contract(max_length=64),
        tokenizer=str(tokenizer),
        seed=3,
        lanes=LaneFolder.of(
            str(folder), "lanes", steps=config.steps, batch_size=config.batch_size, workers=1
        ),
    )
