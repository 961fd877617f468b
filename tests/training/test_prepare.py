"""From a recipe to plan and rows: what is reused, what is refused, and the choice when data changed."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import copy_files

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import here, resolve
from rayembed.config.loading import validate_config
from rayembed.config.run import RunConfig
from rayembed.data import build
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import local_batches
from rayembed.training import prepared_source
from rayembed.training.prepare import check_sources, resolve_data
from tests.training.recipes import LABELS, PAIRS, recipe, write_labels, write_pairs


@pytest.fixture
def home(home) -> Path:
    """Workspace with the files of both sources."""
    write_pairs(home, 24)
    write_labels(home)
    return home


def prepare(home: Path, config: RunConfig):
    [stage] = resolve_data(config)
    return stage.prepare(home / "runs" / config.name, "no tokenizer")


def plan_of(spec) -> list[list[tuple[int, int]]]:
    reader = PlanReader(spec.plan)
    return [reader.read(step).pairs() for step in range(reader.steps)]


def test_a_stage_is_prepared_once(home):
    first = prepare(home, recipe(PAIRS, LABELS))
    written = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    assert prepare(home, recipe(PAIRS, LABELS)) == first
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()} == written
    assert [len(PreparedRows.open(path)) for path in first.sources] == [24, 18]


def test_another_node_reads_from_the_store_what_was_prepared(home, node, s3, tiny_base, monkeypatch):
    """Rows, plan, tokenizer and lanes; the driver made them from a source in the store."""
    monkeypatch.setenv("RAYEMBED_HOME", s3.uri("bucket/prepared"))
    store, bucket = s3.open("bucket/prepared")
    for path in (home / "pairs.jsonl", home / "labels.jsonl"):
        copy_files(str(path), f"{bucket}/{path.name}", destination_filesystem=store)
    copy_files(str(tiny_base), f"{bucket}/base", destination_filesystem=store)
    config = recipe(PAIRS, LABELS)
    [stage] = resolve_data(config)
    spec = stage.prepare(resolve("runs") / config.name, str(resolve("base")))
    expected = [batch.packed.input_ids_T.tolist() for batch in local_batches(spec, start=0, stop=6)]
    lanes = spec.lanes.begin()
    node("b")
    cutter, plan = spec.cutter(), PlanReader(spec.plan)
    for number in lanes.missing():
        lanes.write(number, (cutter.cut(plan.read(step)) for step in lanes.steps_in(number)))
    read = node("c")
    batches = lanes.batches(0, 6, rank=0, world_size=1)
    assert [batch.packed.input_ids_T.tolist() for batch in batches] == expected
    assert not read.exists(), "a rank needs its lanes alone"
    [again] = resolve_data(config)
    assert again.prepare(resolve("runs") / config.name, str(resolve("base"))).plan == here(spec.plan)


def test_an_instruction_of_a_row_that_fills_the_length_is_refused_before_training(home, tiny_base):
    path = home / "pairs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["instruction"] = "Find " * 200
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [stage] = resolve_data(recipe(PAIRS))
    with pytest.raises(DataError, match=r"instruction 'Find Find .*: the instruction takes .*\d+ tokens"):
        stage.prepare(home / "runs" / "long", str(tiny_base))


def test_rows_are_shared_by_entries_that_need_the_same(home):
    first = prepare(home, recipe(PAIRS, LABELS))
    other = PAIRS | {"weight": 1, "instruction": "Find", "cap": 20, "epochs": 9, "negatives_per_query": 1}
    changed = recipe(other, LABELS | {"negatives_per_query": 1}).model_copy(update={"name": "second"})
    assert prepare(home, changed).sources == first.sources
    named = recipe(PAIRS, LABELS | {"labels": "label"}).model_copy(update={"name": "third"})
    assert prepare(home, named).sources[1] != first.sources[1]


def test_rows_that_share_a_document_are_planned_apart(home):
    spec = prepare(home, recipe(PAIRS, batch_size=12, steps=30))
    for batch in plan_of(spec):
        assert len({row % 20 for _, row in batch}) == 12


def test_changed_data_refuses_to_continue_and_says_what_can_be_done(home):
    spec = prepare(home, recipe(PAIRS, LABELS))
    before = plan_of(spec)
    write_pairs(home, 30)
    with pytest.raises(DataError) as raised:
        prepare(home, recipe(PAIRS, LABELS))
    message = str(raised.value)
    assert "stage one was planned" in message
    assert "since then: pairs.file train-00000.parquet has changed." in message
    for choice in ("Put back what it was", "training.changed_data=keep", "set name to start another run"):
        assert choice in message

    kept = prepare(home, recipe(PAIRS, LABELS, training={"changed_data": "keep"}))
    assert (kept, plan_of(kept)) == (spec, before)
    assert len(PreparedRows.open(kept.sources[0])) == 24

    write_pairs(home, 24)
    assert prepare(home, recipe(PAIRS, LABELS)) == spec


def test_rows_that_are_gone_cannot_be_kept(home):
    spec = prepare(home, recipe(PAIRS))
    write_pairs(home, 30)
    spec.sources[0].unlink()
    with pytest.raises(DataError, match=r"no longer in .* its files changed; put the files back"):
        prepare(home, recipe(PAIRS, training={"changed_data": "keep"}))


def test_removed_rows_are_prepared_again(home):
    spec = prepare(home, recipe(PAIRS, LABELS))
    content = spec.sources[1].read_bytes()
    spec.sources[1].unlink()
    assert prepare(home, recipe(PAIRS, LABELS)) == spec
    assert spec.sources[1].read_bytes() == content


def test_damaged_rows_are_an_error_with_the_cure(home):
    spec = prepare(home, recipe(PAIRS))
    file = spec.sources[0].parent / "rows-00000.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"the rows in .* are not complete .* prepared again"):
        prepare(home, recipe(PAIRS))


def test_rows_without_any_negatives_are_an_error(home):
    with pytest.raises(DataError, match=r"source pairs: 24 of 24 rows have no negatives .*mining"):
        prepare(home, recipe(PAIRS | {"in_batch_negatives": False, "negatives_per_query": 1}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            LABELS | {"in_batch_negatives": True},
            "labels has labels, and with in-batch negatives .* in_batch_negatives: false",
        ),
        (PAIRS | {"labels": "label"}, "pairs has pairs and no labels; remove labels: label"),
    ],
)
def test_a_layout_must_fit_its_use(entry, message):
    with pytest.raises(ConfigError, match=message):
        check_sources(recipe(entry))
    check_sources(recipe(LABELS | {"in_batch_negatives": True, "labels": "label"}))


@pytest.mark.parametrize(
    ("entry", "stage", "message"),
    [
        ({"paraphrases": ["Look"]}, {}, "paraphrases need the instruction that they reword; set instruction"),
        ({"instruction": "Find", "paraphrases": ["Look", "Find"]}, {}, "a wording appears twice"),
        ({"symmetric": True}, {}, "there is none; set instruction or remove symmetric"),
        ({"mining": {}}, {}, "negatives_per_query is 0; raise it or remove mining"),
        ({}, {"batching": "interleaved"}, "sub_batch_size None; interleaved batches need it"),
        ({}, {"sub_batch_size": 3}, "batching is blended and sub_batch_size 3"),
        ({}, {"batching": "interleaved", "sub_batch_size": 4}, "4 must divide batch_size 6"),
        ({}, {"batching": "interleaved", "sub_batch_size": 6}, "or batching homogeneous"),
        ({"weight": None}, {}, "sources labels have a weight and pairs have none; give all of them one"),
        ({}, {"size_temperature": 2}, "size_temperature 2 has no effect on weights; remove it"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(entry, stage, message):
    with pytest.raises(ConfigError, match=message):
        recipe(PAIRS | entry, LABELS, **stage)


def test_rows_that_resemble_an_evaluation_are_left_out_and_counted(home):
    (home / "held-out.jsonl").write_text(json.dumps({"text": "What is 7, please?", "label": "x"}) + "\n")
    lines = [{"query": f"what is {row} please", "positive": f"about {row}"} for row in range(24)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = recipe(PAIRS).model_dump(mode="json")
    raw["data"]["sources"]["held-out"] = {"path": "held-out.jsonl", "kind": "labels"}
    raw["data"]["contamination"] = {"against": ["held-out"]}
    spec = prepare(home, validate_config(raw, origin="here"))
    assert len(PreparedRows.open(spec.sources[0])) == 23
    counted = json.loads((spec.sources[0].parent / "contamination.json").read_text())
    assert (counted["rows"], counted["dropped"]) == (24, {"held-out": 1})
    assert counted["examples"] == [["held-out", "What is 7, please?", "what is 7 please"]]


def on_actors(monkeypatch) -> list[str]:
    """Do work of several jobs as actors would; returns its titles, as they come."""
    titles = []

    def elsewhere(function, jobs, title, *, here):
        titles.extend([] if here else [title])
        return (deepcopy(function)(deepcopy(job)) for job in jobs)  # as if it were sent

    monkeypatch.setattr(build, "on_all_cpus", elsewhere)
    monkeypatch.setattr(prepared_source, "on_all_cpus", elsewhere)
    return titles


@pytest.mark.parametrize("labels", ["example", "label"])
@pytest.mark.parametrize("parts", [1, 3])
def test_labels_of_several_files_are_one_source(home, monkeypatch, labels, parts):
    """Repeats, a text of two classes and a class of one text are found wherever they lie."""
    titles = on_actors(monkeypatch)
    lines = [{"text": f"{label} {number}", "label": label} for number in range(6) for label in "abc"]
    lines += [{"text": "both", "label": "a"}, {"text": "d 0", "label": "d"}, {"text": "both", "label": "b"}]
    (home / "labels.jsonl").unlink()
    (home / "many").mkdir()
    for part, of_part in enumerate(np.array_split(lines, parts)):
        text = "".join(json.dumps(line) + "\n" for line in of_part.tolist())
        (home / "many" / f"{part}.jsonl").write_text(text)
    raw = recipe(LABELS | {"labels": labels}).model_dump(mode="json")
    raw["data"]["sources"]["labels"]["path"] = "many"
    spec = prepare(home, validate_config(raw, origin="here"))
    rows = PreparedRows.open(spec.sources[0])
    kept = rows.take(np.arange(len(rows)), ["query", "cluster"])
    wanted = [(line["text"], line["label"]) for line in lines if line["text"] != "both"]
    if labels == "example":
        wanted.remove(("d 0", "d"))
    assert [(row["query"], row["cluster"]) for row in kept] == wanted
    assert ("leaving out rows" in titles) is (parts == 3)
    plan, chooser = PlanReader(spec.plan), spec.chooser()
    drawn = [row for step in range(plan.steps) for row in chooser.choose(plan.read(step))]
    for row in drawn:
        own = row.query[0]
        documents = [row.texts[key][0] for key in (row.target, *row.negatives)]
        assert (documents[0], own in documents[1:], len(documents)) == (own, False, 3)


@pytest.mark.parametrize("parts", [1, 3])
def test_single_texts_of_several_files_come_once(home, monkeypatch, parts):
    on_actors(monkeypatch)
    lines = [{"query": f"q{row}", "positive": f"p{row % 7}"} for row in range(24)]
    (home / "pairs.jsonl").unlink()
    (home / "many").mkdir()
    for part, of_part in enumerate(np.array_split(lines, parts)):
        text = "".join(json.dumps(line) + "\n" for line in of_part.tolist())
        (home / "many" / f"{part}.jsonl").write_text(text)
    raw = recipe(PAIRS, kind="simcse", texts="documents", attention_dropout=0.1).model_dump(mode="json")
    raw["data"]["sources"]["pairs"]["path"] = "many"
    spec = prepare(home, validate_config(raw, origin="here"))
    rows = PreparedRows.open(spec.sources[0])
    assert [row["query"] for row in rows.take(np.arange(len(rows)), ["query"])] == [f"p{n}" for n in range(7)]


def test_a_source_of_several_files_is_prepared_in_pieces_that_outlive_an_error(home, monkeypatch):
    titles = on_actors(monkeypatch)
    (home / "many").mkdir()
    for part in range(3):
        write_pairs(home, 24)
        lines = (home / "pairs.jsonl").read_text().splitlines()[8 * part : 8 * part + 8]
        (home / "many" / f"{part}.jsonl").write_text("\n".join(lines))
    whole = prepare(home, recipe(PAIRS))
    raw = recipe(PAIRS).model_dump(mode="json") | {"name": "many"}
    raw["data"]["sources"]["pairs"]["path"] = "many"
    config = validate_config(raw, origin="here")
    spec = prepare(home, config)
    expected = PreparedRows.open(whole.sources[0])
    rows = PreparedRows.open(spec.sources[0])
    numbers = np.arange(24)
    assert rows.take(numbers, ["query", "positives"]) == expected.take(numbers, ["query", "positives"])
    assert plan_of(spec) == plan_of(whole)
    assert titles == ["source pairs, reading", "source pairs, writing", "preparing sources"]

    folder = spec.sources[0].parent
    spec.sources[0].unlink()
    (folder / "rows-00001.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert prepare(home, config) == spec
    again = {path.name for path in folder.glob("*.arrow") if path.stat().st_mtime_ns != times[path]}
    assert again == {"rows-00001.arrow"}
    assert json.loads((folder / "contamination.json").read_text())["rows"] == 24


def test_sentences_of_equal_meaning_become_rows_in_both_directions(home):
    rows = [{"sentence1": f"a{row}", "sentence2": f"b{row}", "score": row} for row in range(6)]
    (home / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = recipe(PAIRS | {"source": "scores"}, batch_size=2).model_dump(mode="json")
    raw["data"]["sources"]["scores"] = {"path": "scores.jsonl", "kind": "scores", "task_type": "sts"}
    config = validate_config(raw, origin="here")
    check_sources(config)
    assert len(PreparedRows.open(prepare(home, config).sources[0])) == 4
    raw["data"]["sources"]["scores"]["least_score"] = 9
    for mining in (None, {"top_k": 2}):
        raw["stages"][0]["blend"][0] |= {"mining": mining, "negatives_per_query": 1}
        raw["name"] = f"mined-{mining is not None}".lower()
        with pytest.raises(DataError, match=r"no pair of different .* score of 9 or more; set least_score"):
            prepare(home, validate_config(raw, origin="here"))


def test_scores_to_learn_from_must_be_there(home):
    rows = [{"query": f"q{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(8)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = recipe(PAIRS).model_dump(mode="json")
    raw["stages"][0]["loss"] = [{"type": "infonce"}, {"type": "score_distillation"}]
    with pytest.raises(DataError, match="no row of its blend has teacher_scores; mine with a teacher"):
        prepare(home, validate_config(raw, origin="here"))
