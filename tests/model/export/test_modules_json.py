"""Folders of sentence-transformers: what they declare is taken over, and their vectors are equal."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.config.loading import load_config
from rayembed.contract import Contract
from rayembed.engine.embedder import Embedder
from rayembed.model.base_model import (
    check_length,
    import_sentence_transformers,
    prepare_base_model,
    save_untrained,
)
from rayembed.model.configuration import ModelConfig
from rayembed.model.export.modules_json import read_modules
from rayembed.model.export.sentence_transformers import export_sentence_transformers
from tests.model.test_families import FAMILIES, save_random
from tests.packaged import PACKAGES, published
from tests.tiny import make_tokenizer, save_base

LETTERS = "abcdefghijklmnopqrstuvwxyz:"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
TEXTS = ["some words", "a", "Upper", "", "many words that are far too long for this model", "[CLS] odd [SEP]"]


def word_piece_tokenizer():
    backend = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_bert(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=40, **sizes)).save_pretrained(
        folder
    )
    word_piece_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """Takes what its tokenizer begins a text with for padding."""
    folder = tmp_path_factory.mktemp("roberta")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    RobertaModel(RobertaConfig(vocab_size=len(VOCABULARY), pad_token_id=2, **sizes)).save_pretrained(folder)
    word_piece_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("mistral"))


def save_modules(base, folder, *more, pooling="mean", length=20, include_prompt=True, **options):
    transformer = Transformer(str(base), max_seq_length=length)
    modules = [transformer, Pooling(32, pooling, include_prompt=include_prompt), *more]
    model = SentenceTransformer(modules=modules, device="cpu", **options)
    model.save(str(folder))
    return model


@pytest.mark.parametrize(
    ("base", "pooling", "include_prompt"),
    [
        ("bert", "mean", True),
        ("bert", "cls", True),
        ("bert", "mean", False),
        ("bert", "weightedmean", True),
        ("mistral", "lasttoken", True),
    ],
)
def test_vectors_equal_those_of_sentence_transformers(base, pooling, include_prompt, tmp_path, request):
    prompts = {"query": "query: ", "document": "passage: ", "bare": ""}
    folder = request.getfixturevalue(base)
    theirs = save_modules(
        folder,
        tmp_path / "theirs",
        Normalize(),
        pooling=pooling,
        include_prompt=include_prompt,
        prompts=prompts,
    )
    import_sentence_transformers(tmp_path / "theirs", tmp_path / "ours")
    ours = Embedder.load(tmp_path / "ours", precision="fp32")
    texts = [text for text in TEXTS if text or base == "bert"]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-6)
    for name in ("query", "document"):
        wanted = theirs.encode(texts[:3], prompt_name=name)
        np.testing.assert_allclose(ours.encode(texts[:3], task=name), wanted, atol=1e-6)
    assert ours.contract.max_length == 20


@pytest.mark.parametrize("name", PACKAGES)
def test_published_models_give_the_vectors_of_sentence_transformers(name, tmp_path):
    folder = published(name, tmp_path / "files")
    import_sentence_transformers(folder, tmp_path / "ours")
    texts = ["a", "Return True if the path is absolute", "Gr\u00fc\u00dfe, Stra\u00dfe! " * 200]
    ours = Embedder.load(tmp_path / "ours", precision="fp32", device="cpu").encode(texts)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def recipe(base, **settings):
    source = {"source": "nq", "weight": 1, "in_batch_negatives": True}
    stages = [{"name": "only", "steps": 1, "batch_size": 4, "learning_rate": 1e-4, "blend": [source]}]
    return {"name": "mine", "base_model": str(base), "stages": stages} | settings


def test_recipes_take_over_what_they_do_not_say(bert, tmp_path, caplog):
    caplog.set_level("INFO")
    save_modules(bert, tmp_path, Normalize(), pooling="cls", prompts={"query": "query: "})
    config = load_config(recipe(tmp_path, contract={"max_length": 12}))
    assert config.model.pooling.type == "cls"
    assert config.contract == Contract(
        max_length=12,
        pool_instruction=True,
        instruction_template="{instruction}",
        instructions={"query": "query: "},
    )
    assert config.contract.prompts == ("query: ", None)
    assert "'pooling': {'type': 'cls'}" in caplog.text
    assert prepare_base_model(str(tmp_path), tmp_path) == tmp_path
    assert load_config(recipe(tmp_path, model={"pooling": {"type": "mean"}})).model.pooling.type == "mean"
    with pytest.raises(ConfigError, match="type cls takes the first token"):
        load_config(recipe(bert, model={"pooling": {"type": "cls"}}))


def test_folders_of_older_releases(bert, tmp_path):
    """The transformer in a folder of its own, a flag for each pooling mode, and the length next to them."""
    shutil.copytree(bert, tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(flags))
    names = {"Transformer": "0_Transformer", "Pooling": "1_Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in names.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    settings = tmp_path / "0_Transformer/sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 33, "do_lower_case": True}))
    found = read_modules(tmp_path)
    assert (found.backbone, found.model.pooling.type) == (tmp_path / "0_Transformer", "cls")
    assert found.contract.max_length == 33
    settings.write_text(json.dumps({"max_seq_length": None}))
    assert read_modules(tmp_path).contract.max_length == 40  # positions of the model
    result = CliRunner().invoke(app, ["import-checkpoint", str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert Embedder.load(tmp_path / "out").dimensions == 32


def test_what_cannot_be_followed_is_refused_by_name(bert, tmp_path):
    save_modules(bert, tmp_path / "dense", Dense(32, 8))
    with pytest.raises(CheckpointError, match="has the module Dense, which cannot be computed here"):
        load_config(recipe(tmp_path / "dense"))
    save_modules(bert, tmp_path / "max", pooling="max")
    with pytest.raises(CheckpointError, match="pools by max; one of mean, cls, weightedmean, lasttoken can"):
        read_modules(tmp_path / "max")
    with pytest.raises(CheckpointError, match="convert it with `rayembed import-checkpoint`"):
        Embedder.load(tmp_path / "dense")
    with pytest.raises(ConfigError, match=r"512 and base model .* has learned 40 positions"):
        check_length(bert, Contract())


LOAD_ALONE = """
import json, sys
sys.modules["rayembed"] = None  # importing it fails
from sentence_transformers import SentenceTransformer

def encode(folder, texts):
    model = SentenceTransformer(folder, device="cpu")
    return {name: model.encode(texts, prompt_name=name).tolist() for name in model.prompts}

print(json.dumps({folder: encode(folder, texts) for folder, texts in json.loads(sys.argv[1]).items()}))
"""
PROMPTS = {"query": "query: ", "document": "passage: "}
FIXED = {"instruction_template": "{instruction}", "instructions": PROMPTS, "max_length": 20}
FREE = {"instructions": {"query": "find"}, "max_length": 50}
CAUSAL_EOS = {"attention": "causal", "pooling": {"type": "eos"}}


def export(base, folder, contract, model):
    """Checkpoint and export of an untrained model, in `folder`."""
    config = ModelConfig.model_validate(model)
    save_untrained(base, folder / "checkpoint", Contract(**contract), config=config)
    export_sentence_transformers(folder / "checkpoint", folder / "exported")
    return folder / "exported"


@pytest.fixture
def gemma(tmp_path):
    """Layers with windows of 4 tokens, whose configuration can say that they look both ways."""
    save_random(*FAMILIES["gemma3_text"], tmp_path / "gemma")
    make_tokenizer().save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def test_plain_exports_load_without_this_library(bert, mistral, gemma, tmp_path):
    """The end token that BERT's tokenizer adds and the contract does not is gone, Mistral's is added."""
    cases = {
        "prompt": (bert, FIXED, {"pooling": {"type": "mean"}}),
        "first": (bert, FIXED | {"pool_instruction": True}, {"pooling": {"type": "cls"}}),
        "no-end": (bert, FIXED | {"append_eos": False}, {"pooling": {"type": "mean"}}),
        "last": (mistral, FREE, CAUSAL_EOS),
        "both-ways": (gemma, FREE | {"pool_instruction": True}, {"pooling": {"type": "mean"}}),
        "back": (gemma, FREE, CAUSAL_EOS),
    }
    folders = {name: export(case[0], tmp_path / name, *case[1:]) for name, case in cases.items()}
    texts = [*filter(None, TEXTS), " odd  spaces\n", "y" * 99]
    command = [sys.executable, "-c", LOAD_ALONE, json.dumps({str(each): texts for each in folders.values()})]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, folder in folders.items():
        import_sentence_transformers(folder, tmp_path / name / "again")
        theirs = json.loads(run.stdout.splitlines()[-1])[str(folder)]
        assert {"query", "document"} <= theirs.keys()
        for checkpoint in ("checkpoint", "again"):
            ours = Embedder.load(tmp_path / name / checkpoint, precision="fp32")
            documents = ours.encode(
                texts, instruction=ours.contract.instruction_for("query", side="document")
            )
            np.testing.assert_allclose(theirs["query"], ours.encode(texts, task="query"), atol=1e-5)
            np.testing.assert_allclose(theirs["document"], documents, atol=1e-5)
        assert "trust_remote_code" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "contract", "model", "problem"),
    [
        ("mistral", FREE, {"pooling": {"type": "eos"}}, "its attention is bidirectional"),
        ("mistral", FREE, CAUSAL_EOS | {"pooling": {"type": "mean"}}, "has 22 tokens alone and 21 before"),
        ("mistral", FREE | {"truncation": "published"}, CAUSAL_EOS, "cuts the end token off long texts"),
        ("mistral", FREE | {"max_length": 9}, CAUSAL_EOS, "leaves no room for text"),
        ("bert", FIXED, {"pooling": {"type": "weighted_mean"}}, "weights begin behind the prompt here"),
        ("bert", FIXED, {"pooling": {"type": "self_attention"}}, "no mode for the head self_attention"),
        ("roberta", FIXED, {"pooling": {"type": "mean"}}, "token 2 of its texts is padding to roberta"),
    ],
)
def test_what_plain_modules_cannot_compute_is_said(base, contract, model, problem, tmp_path, request, caplog):
    caplog.set_level("INFO")
    folder = export(request.getfixturevalue(base), tmp_path, contract, model)
    assert f"{folder} needs rayembed where it is loaded" in caplog.text
    assert problem in caplog.text
    assert "RayembedModule" in (folder / "modules.json").read_text()
