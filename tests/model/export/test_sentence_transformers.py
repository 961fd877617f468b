"""An exported folder under sentence-transformers and mteb gives the engine's vectors."""

import json
import shutil

import mteb
import numpy as np
import pytest
import torch
from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import CheckpointError
from rayembed.contract import Contract
from rayembed.engine.engine import Engine
from rayembed.model.backbone import prepare_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.export.sentence_transformers import RayembedModule, load_sentence_transformer
from rayembed.model.pooling import LatentPoolingConfig
from tests.tiny import make_backbone, make_tokenizer

TEXTS = ["a", "some longer text here", "3 things", "x" * 100]
PROVENANCE = {
    "base_model": "smollm2-135m",
    "stages": [{"name": "retrieval", "steps": 7}],
    "sources": ["search", "own"],
    "licences": {"smollm2-135m": "Apache-2.0", "search": "MIT"},
}
SCORES = {"tasks": {"Searching": {"metric": "ndcg_at_10", "base": 0.25, "bm25": None, "trained": 0.5}}}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run's folder: its model and its summary."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    pooling = LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")
    contract = Contract(
        max_length=64,
        instructions={"query": "find", "search": "find", "similar": "match"},
        symmetric=("similar",),
    )
    embedder = EmbeddingModel(
        prepare_backbone(make_backbone(), "bidirectional"), ModelConfig(pooling=pooling)
    )
    save_model(folder / "model", embedder, make_tokenizer(), contract, provenance=PROVENANCE)
    (folder / "summary.json").write_text(json.dumps(SCORES))
    return folder


@pytest.fixture(scope="module")
def exported(run_folder):
    out = run_folder / "exported"
    arguments = [
        "export-checkpoint",
        str(run_folder / "model"),
        str(out),
        "--layout",
        "sentence-transformers",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def engine(run_folder):
    return Engine.load(run_folder / "model", precision="fp32")


@pytest.fixture(scope="module", params=["flag", "helper"])
def model(request, exported):
    if request.param == "flag":
        return SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")
    return load_sentence_transformer(exported, device="cpu")


def test_vectors_and_prompts_are_the_engines(model, engine):
    np.testing.assert_allclose(model.encode(TEXTS), engine.encode(TEXTS).vectors, atol=1e-5)
    with_name = engine.encode(TEXTS, instruction="match").vectors
    np.testing.assert_allclose(model.encode(TEXTS, prompt_name="similar"), with_name, atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS, prompt_name="similar-document"), with_name, atol=1e-5)
    queries = engine.encode(TEXTS, instruction="find").vectors
    np.testing.assert_allclose(model.encode_query(TEXTS), queries, atol=1e-5)
    np.testing.assert_allclose(model.encode_document(TEXTS), engine.encode(TEXTS).vectors, atol=1e-5)
    assert model.prompts["search-document"] == ""
    assert model.similarity_fn_name == "cosine"
    assert (model.get_embedding_dimension(), model.max_seq_length) == (32, 64)


def test_truncation_keeps_the_end_token(model, engine):
    cut = model.encode(["y" * 200])
    np.testing.assert_allclose(cut, engine.encode(["y" * 200]).vectors, atol=1e-5)
    np.testing.assert_allclose(cut, model.encode(["y" * 63]), atol=1e-5)


def test_no_code_travels_with_the_folder_and_the_flag_is_asked_for(exported):
    assert not list(exported.rglob("*.py"))
    with pytest.raises(ValueError, match="not part of Sentence Transformers"):
        SentenceTransformer(str(exported), device="cpu")


def test_a_file_in_the_folder_cannot_stand_in_for_the_package(exported, tmp_path):
    """With the flag set, the class is still the installed one."""
    planted = tmp_path / "planted"
    shutil.copytree(exported, planted)
    for name in ("rayembed.py", "sentence_transformers.py"):
        (planted / name).write_text("raise RuntimeError('code of the folder ran')\n")
    model = SentenceTransformer(str(planted), trust_remote_code=True, device="cpu")
    assert type(model[0]) is RayembedModule


def test_the_exported_folder_is_still_a_checkpoint(exported, engine):
    again = Engine.load(exported, precision="fp32")
    assert again.digest == engine.digest
    np.testing.assert_allclose(again.encode(TEXTS).vectors, engine.encode(TEXTS).vectors, atol=1e-6)


def test_saving_from_sentence_transformers_round_trips(model, engine, tmp_path):
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), engine.encode(TEXTS).vectors, atol=1e-5)
    assert again.prompts == model.prompts
    vectors = Engine.load(tmp_path / "saved", precision="fp32").encode(TEXTS).vectors
    np.testing.assert_allclose(vectors, engine.encode(TEXTS).vectors, atol=1e-5)


def test_mteb_runs_it(exported):
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")
    result = mteb.evaluate(
        model, MockRetrievalTask(), cache=None, co2_tracker=False, show_progress_bar=False
    ).task_results[0]
    assert 0 <= result.get_score() <= 1


def test_model_card(exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    for line in (
        "| training stages | retrieval (7 steps) |",
        "| smollm2-135m | base model | Apache-2.0 |",
        "| search | data | MIT |",
        "| own | data | not recorded |",
        "| `similar` | match | both sides |",
        "| Searching | ndcg_at_10 | 0.2500 |  | 0.5000 |",
    ):
        assert line in card


def test_damaged_exports_are_refused(exported, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / "contract.json").unlink()
    with pytest.raises(CheckpointError, match=r"contract\.json is missing"):
        load_sentence_transformer(broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "--layout", "sentence-transformers"], "is the checkpoint itself"),
        (["out", "--layout", "sentence-transformers", "--summary", "no.json"], "no summary at"),
    ],
)
def test_export_command_refuses(run_folder, monkeypatch, arguments, message):
    monkeypatch.setenv("RAYEMBED_HOME", str(run_folder))
    with pytest.raises(CheckpointError, match=message):
        CliRunner().invoke(app, ["export-checkpoint", "model", *arguments], catch_exceptions=False)
