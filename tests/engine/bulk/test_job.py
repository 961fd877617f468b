"""The job in this process, without Ray."""

import json
import logging
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import copy_files
from typer.testing import CliRunner

from rayembed import Embedder
from rayembed.cli.main import app
from rayembed.common.errors import DataError, RequestError
from rayembed.common.paths import resolve
from rayembed.contract.ranges import VectorRanges
from rayembed.engine.bulk import job
from rayembed.engine.bulk.job import embed_files
from rayembed.engine.bulk.request import EmbedRequest
from rayembed.engine.vector_formats import quantise
from rayembed.model.checkpoint import load_model, save_model

TEXTS = [f"text {number} " * (1 + number % 7) for number in range(50)]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint) -> np.ndarray:
    return Embedder.load(tiny_checkpoint, precision="fp32").encode(TEXTS)


@pytest.fixture
def files(tmp_path) -> Path:
    """Two Parquet files of 30 and 20 rows."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, start, stop in (("a", 0, 30), ("b", 30, 50)):
        ids = [f"id-{number}" for number in range(start, stop)]
        pq.write_table(pa.table({"id": ids, "text": TEXTS[start:stop]}), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def request_(files, tiny_checkpoint, tmp_path):
    """Makes requests for the files."""

    def make(**changes) -> EmbedRequest:
        settings = {
            "files": files,
            "checkpoint": tiny_checkpoint,
            "output": tmp_path / "out",
            "shard_rows": 8,
            "precision": "fp32",
        }
        return EmbedRequest(**settings | changes)

    return make


def stored(output: Path) -> np.ndarray:
    column = pq.read_table(output / "vectors")["vector"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def parts(output: Path) -> dict[str, int]:
    """Shards and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((output / "vectors").iterdir())}


def test_a_job_has_one_precision_whatever_auto_means_elsewhere(request_, monkeypatch):
    meaning = ["fp32"]
    monkeypatch.setattr(job, "chosen_precision", lambda precision, device: meaning[0])
    request = request_(precision="auto")

    def precision(**options):
        return embed_files(request, actors=0, **options)["settings"]["precision"]

    assert precision(dry_run=True) == "auto", "no worker is asked"
    assert precision() == "fp32"
    meaning[0] = "bf16"
    assert precision() == precision(dry_run=True) == "fp32"
    embed_files(request_(precision="fp32"), actors=0)
    assert precision(overwrite=True) == "bf16"
    with pytest.raises(DataError, match="precision"):
        embed_files(request_(precision="fp32"), actors=0)


def test_shards_hold_the_rows_in_order_beside_their_vectors(request_, expected, tmp_path, tiny_checkpoint):
    manifest = embed_files(request_(keep=["id"]), actors=0)
    table = pq.read_table(tmp_path / "out" / "vectors")
    assert list(parts(tmp_path / "out")) == [f"part-{number:06d}.parquet" for number in range(7)]
    assert table.column_names == ["row", "id", "vector"]
    assert table["row"].to_pylist() == list(range(50))
    assert table["id"].to_pylist() == [f"id-{number}" for number in range(50)]
    np.testing.assert_allclose(stored(tmp_path / "out"), expected, atol=1e-5)
    tokens = Embedder.load(tiny_checkpoint, precision="fp32").engine.encode(TEXTS)
    assert manifest["statistics"] == {
        "rows": 50,
        "vectors": 50,
        "tokens": sum(tokens.token_counts),
        "truncated": sum(tokens.truncated),
        "bad_rows": {},
    }
    assert manifest["status"] == "complete"
    assert manifest["contract"]["max_length"] == 64
    assert [file["rows"] for file in manifest["input"]] == [30, 20]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == {"format_version": 1} | manifest


@pytest.mark.parametrize(
    ("vectors", "element", "duckdb_type", "width"),
    [
        ("float32", pa.float32(), "FLOAT", 16),
        ("float16", pa.float16(), "FLOAT", 16),
        ("int8", pa.int8(), "TINYINT", 16),
        ("uint8", pa.uint8(), "UTINYINT", 16),
        ("binary", pa.int8(), "TINYINT", 2),
        ("ubinary", pa.uint8(), "UTINYINT", 2),
    ],
)
def test_pyarrow_pandas_and_duckdb_read_every_format(
    request_, expected, tmp_path, vectors, element, duckdb_type, width
):
    embed_files(request_(vectors=vectors, dimensions=16), actors=0)
    cut = expected[:, :16] / np.linalg.norm(expected[:, :16], axis=1, keepdims=True)
    wanted, folder = quantise(cut, vectors), tmp_path / "out" / "vectors"
    # A rounding may go the other way where the shards' batches differ in the last bits.
    tolerance = {"float32": 1e-5, "float16": 1e-3, "int8": 1, "uint8": 1}.get(vectors, 0)
    column = pq.read_table(folder)["vector"]
    assert column.type == pa.list_(element, width)
    found = np.array(column.to_pylist())
    np.testing.assert_allclose(found, wanted.astype(found.dtype), atol=tolerance)
    np.testing.assert_array_equal(np.stack(pd.read_parquet(folder)["vector"]), found)
    query = f"SELECT vector::{duckdb_type}[{width}] FROM read_parquet('{folder}/*.parquet') ORDER BY row"
    np.testing.assert_array_equal(np.array(duckdb.sql(query).fetchall())[:, 0], found)


def test_ranges_of_the_contract_cut_the_numbers_of_job_and_embedder_alike(
    request_, expected, tiny_checkpoint, tmp_path
):
    model, ranges = load_model(tiny_checkpoint), VectorRanges.of(expected[:20])
    contract = model.contract.model_copy(update={"vector_ranges": ranges})
    save_model(tmp_path / "measured", model.embedder, model.tokenizer, contract)
    embedder = Embedder.load(tmp_path / "measured", precision="fp32")
    for kind in ("uint8", "ubinary"):
        wanted = quantise(expected, kind, ranges)
        output = tmp_path / kind
        embed_files(request_(checkpoint=tmp_path / "measured", vectors=kind, output=output), actors=0)
        found = {
            "job": np.array(pq.read_table(output / "vectors")["vector"].to_pylist()),
            "texts": embedder.encode(TEXTS, vectors=kind),
            "blocks": np.concatenate(list(embedder.encode_blocks(TEXTS, vectors=kind, show_progress=False))),
        }
        for name, numbers in found.items():
            # A rounding may go the other way where batches differ in the last bits.
            assert np.abs(numbers.astype(int) - wanted).max() <= (kind == "uint8"), (kind, name)
        assert (wanted != quantise(expected, kind)).mean() > 0.1


def test_only_shards_that_are_not_there_are_made_again(request_, tmp_path, expected, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rayembed"), "propagate", True)
    output = tmp_path / "out"
    first = embed_files(request_(), actors=0)
    before = parts(output)
    (output / "vectors" / "part-000002.parquet").unlink()
    torn = output / "vectors" / "part-000004.parquet"
    torn.write_bytes(torn.read_bytes()[:-20])
    (output / "vectors" / ".part-000002.parquet.abc").write_text("left by a killed job")
    second = embed_files(request_(), actors=0)
    after = parts(output)
    assert [name for name in before if before[name] != after[name]] == [
        "part-000002.parquet",
        "part-000004.parquet",
    ]
    assert "the shard is made again" in caplog.text
    assert after.keys() == before.keys()
    assert second["statistics"] == first["statistics"]
    np.testing.assert_allclose(stored(output), expected, atol=1e-5)


def test_input_checkpoint_and_output_may_be_in_a_store(
    request_, files, tiny_checkpoint, expected, node, s3, caplog
):
    caplog.set_level(logging.INFO, logger="rayembed")
    store, bucket = s3.open("bucket/embed")
    for name, folder in (("texts", files), ("model", tiny_checkpoint)):
        copy_files(str(folder), f"{bucket}/{name}", destination_filesystem=store)
    places = {
        "files": s3.uri("bucket/embed/texts"),
        "checkpoint": s3.uri("bucket/embed/model"),
        "output": s3.uri("bucket/embed/out"),
    }
    embed_files(request_(**places), actors=0)
    table = pq.read_table(f"{bucket}/out/vectors", filesystem=store)
    column = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    np.testing.assert_allclose(column.reshape(len(TEXTS), -1), expected, atol=1e-6)
    assert not list(resolve(places["output"]).rglob("*.parquet")), "shards take no space of the node"
    store.delete_file(f"{bucket}/out/vectors/part-000003.parquet")
    node("b")
    embed_files(request_(**places), actors=0)
    assert "50 rows of 2 files in 7 shards, 6 of them finished" in caplog.text
    embed_files(request_(**places), actors=0, overwrite=True)
    with pytest.raises(RequestError, match="is inside the input folder"):
        embed_files(request_(**places | {"output": s3.uri("bucket/embed/texts/out")}), actors=0)


def test_another_request_is_refused_until_it_is_told_to_overwrite(request_, files, tmp_path):
    embed_files(request_(), actors=0)
    with pytest.raises(DataError, match=r"dimensions was 32 and is 8\. .*overwrite this one"):
        embed_files(request_(dimensions=8), actors=0)
    pq.write_table(pa.table({"text": ["new"]}), files / "c.parquet")
    pq.write_table(pa.table({"text": TEXTS[:30][::-1]}), files / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has changed; .*c\.parquet is new"):
        embed_files(request_(), actors=0)
    assert stored(tmp_path / "out").shape == (50, 32)
    manifest = embed_files(request_(dimensions=8), actors=0, overwrite=True)
    assert manifest["statistics"]["rows"] == 51
    assert stored(tmp_path / "out").shape == (51, 8)


def test_a_folder_with_other_files_is_left_alone(request_, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="holds other files"):
            embed_files(request_(), actors=0, overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").exists()


@pytest.fixture
def bad_files(tmp_path) -> Path:
    path = tmp_path / "bad.jsonl"
    lines = [{"id": 0, "text": "a"}, {"id": 1, "text": None}, {"id": 2, "text": " "}, {"id": 3, "text": "b"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_a_bad_row_stops_the_job_unless_a_policy_says_otherwise(request_, bad_files):
    with pytest.raises(DataError, match=r"row 2 of .*bad\.jsonl: no text; correct it, or choose to skip"):
        embed_files(request_(files=bad_files), actors=0)


@pytest.mark.parametrize(
    ("policy", "rows", "missing"), [("skip", [0, 3], []), ("null-vector", [0, 1, 2, 3], [1, 2])]
)
def test_bad_rows_are_left_out_or_get_no_vector_and_are_counted(
    request_, bad_files, tmp_path, policy, rows, missing
):
    manifest = embed_files(request_(files=bad_files, bad_rows=policy, keep=["id"], shard_rows=3), actors=0)
    table = pq.read_table(tmp_path / "out" / "vectors")
    assert table["row"].to_pylist() == table["id"].to_pylist() == rows
    vectors = table["vector"].to_pylist()
    assert [position for position, vector in enumerate(vectors) if vector is None] == missing
    assert [len(vector) for vector in vectors if vector is not None] == [32, 32]
    assert manifest["statistics"]["bad_rows"] == {"no text": 1, "empty text": 1}
    assert (manifest["statistics"]["rows"], manifest["statistics"]["vectors"]) == (4, 2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_column": "body"}, DataError, "no column 'body'"),
        ({"keep": ["row"]}, RequestError, "column 'row' of its own"),
        ({"dimensions": 33}, RequestError, "between 1 and 32, not 33"),
        ({"vectors": "float8"}, RequestError, "one of float32, float16.*not 'float8'"),
        ({"vectors": "binary", "dimensions": 12}, RequestError, "multiple of 8, not 12"),
        ({"shard_rows": 0}, RequestError, "at least 1, not 0"),
        ({"task": "answers"}, RequestError, "no instruction named 'answers'"),
    ],
)
def test_requests_that_cannot_work_leave_nothing_behind(request_, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        embed_files(request_(**changes), actors=0)
    assert not (tmp_path / "out").exists()


def test_the_command_shows_its_plan_and_then_does_it(files, tiny_checkpoint, tmp_path):
    options = [
        str(files / "*.parquet"),
        "--checkpoint",
        str(tiny_checkpoint),
        "--output",
        str(tmp_path / "out"),
    ]
    options += [
        "--task",
        "questions",
        "--keep",
        "id",
        "--vectors",
        "float16",
        "--actors",
        "0",
        "--precision",
        "fp32",
    ]
    plan = CliRunner().invoke(app, ["embed", *options, "--dry-run"], catch_exceptions=False)
    assert "instruction  Find the answer" in plan.output
    assert "shards       1, 0 of them finished" in plan.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, ["embed", *options], catch_exceptions=False)
    assert "50 vectors of" in done.output
    embedder = Embedder.load(tiny_checkpoint, precision="fp32")
    np.testing.assert_allclose(stored(tmp_path / "out"), embedder.encode(TEXTS, task="questions"), atol=1e-3)
