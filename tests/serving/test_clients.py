"""Clients that people have, unchanged, against the routes on a loopback port."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import mteb
import numpy as np
import openai
import pytest
import requests

from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine, LocalHandle

TEXTS = ["one", "two words"]


@pytest.fixture(scope="module")
def url(serve_app):
    config = ServeConfig(checkpoint="unused", model_name="fake", aliases=["text-embedding-3-small"])
    replica = EmbeddingReplica(config, lambda _: FakeEngine(instructions={"query": "find"}, max_length=64))
    return serve_app(create_app(config, {"fake": LocalHandle(replica)}))


@pytest.fixture(scope="module")
def expected(url):
    """Vectors of TEXTS by plain HTTP."""
    body = {"model": "fake", "input": TEXTS}
    answer = requests.post(f"{url}/v1/embeddings", json=body).json()
    return np.array([item["embedding"] for item in answer["data"]])


def test_openai_for_node(url, expected):
    """The package is looked for where NODE_PATH says and in the repository's own folder."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    script = Path(__file__).with_name("openai_client.mjs")
    folders = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(":") if folder]
    folders.append(Path(__file__).parents[2] / "node_modules")
    package = next((folder for folder in folders if (folder / "openai").is_dir()), None)
    if package is None:
        pytest.skip("needs the npm package openai: npm install --no-save openai, or NODE_PATH")
    # Modules are looked up from the script's folder, so the script imports the package by its path.
    code = script.read_text().replace('"openai"', json.dumps(str(package / "openai" / "index.mjs")))
    result = subprocess.run(
        [node, "--input-type=module", "-", url], input=code, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    np.testing.assert_allclose(answer["vectors"], expected, rtol=1e-6)
    assert answer["tokens"] == 5
    assert answer["models"] == ["fake"]
    assert answer["failure"] == {"type": "NotFoundError", "code": "model_not_found"}


def test_azure(url, expected):
    client = openai.AzureOpenAI(azure_endpoint=url, api_key="unused", api_version="2024-10-21")
    answer = client.embeddings.create(model="fake", input=TEXTS)
    np.testing.assert_allclose([item.embedding for item in answer.data], expected, rtol=1e-6)


def test_mteb_wrapper(url, expected):
    from mteb.models import OpenAIAPIEncodeWrapper
    from torch.utils.data import DataLoader

    wrapper = OpenAIAPIEncodeWrapper(url, "fake", use_chat_template=False)
    task = mteb.get_task("STSBenchmark")
    vectors = wrapper.encode(
        DataLoader([{"text": text} for text in TEXTS], batch_size=2),
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
    )
    np.testing.assert_allclose(np.asarray(vectors), expected, rtol=1e-6)


def test_cohere(url, expected):
    cohere = pytest.importorskip("cohere", reason="needs the package cohere")
    client = cohere.ClientV2("unused", base_url=url)
    answer = client.embed(
        model="fake", texts=TEXTS, input_type="search_document", embedding_types=["float", "int8"]
    )
    np.testing.assert_allclose(answer.embeddings.float_, expected, rtol=1e-6)
    assert np.shape(answer.embeddings.int8) == expected.shape
    ranked = client.rerank(model="fake", query="one", documents=TEXTS, top_n=1)
    assert len(ranked.results) == 1
    with pytest.raises(cohere.NotFoundError):
        client.embed(model="other", texts=TEXTS, input_type="search_document")


def test_cohere_v1(url, expected):
    cohere = pytest.importorskip("cohere", reason="needs the package cohere")
    client = cohere.Client("unused", base_url=url)
    answer = client.embed(model="fake", texts=TEXTS, input_type="search_document")
    np.testing.assert_allclose(answer.embeddings, expected, rtol=1e-6)


def test_hugging_face(url, expected):
    from huggingface_hub import InferenceClient

    np.testing.assert_allclose(InferenceClient(url).feature_extraction(TEXTS[0])[0], expected[0], rtol=1e-6)


def test_langchain(url, expected):
    langchain = pytest.importorskip("langchain_openai", reason="needs the package langchain-openai")
    embeddings = langchain.OpenAIEmbeddings(
        model="fake", base_url=f"{url}/v1", api_key="unused", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, rtol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected[0], rtol=1e-6)


def test_llama_index(url, expected):
    llama = pytest.importorskip(
        "llama_index.embeddings.openai", reason="needs the package llama-index-embeddings-openai"
    )
    embeddings = llama.OpenAIEmbedding(model_name="fake", api_base=f"{url}/v1", api_key="unused")
    np.testing.assert_allclose(embeddings.get_text_embedding_batch(TEXTS), expected, rtol=1e-6)


def test_litellm(url, expected, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks for one when it is imported
    litellm = pytest.importorskip("litellm", reason="needs the package litellm")
    answer = litellm.embedding("openai/fake", TEXTS, api_base=f"{url}/v1", api_key="unused")
    np.testing.assert_allclose([item["embedding"] for item in answer.data], expected, rtol=1e-6)
    ranked = litellm.rerank("cohere/fake", "one", TEXTS, top_n=1, api_base=url, api_key="unused")
    assert len(ranked.results) == 1


def test_haystack(url, expected, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    embedders = pytest.importorskip("haystack.components.embedders", reason="needs the package haystack-ai")
    from haystack import Document
    from haystack.utils import Secret

    options = {"api_key": Secret.from_token("unused"), "model": "fake", "api_base_url": f"{url}/v1"}
    documents = [Document(content=text) for text in TEXTS]
    answer = embedders.OpenAIDocumentEmbedder(progress_bar=False, **options).run(documents)
    embedded = [document.embedding for document in answer["documents"]]
    np.testing.assert_allclose(embedded, expected, rtol=1e-6)
    query = embedders.OpenAITextEmbedder(**options).run(TEXTS[0])
    np.testing.assert_allclose(query["embedding"], expected[0], rtol=1e-6)


def test_voyage(url, expected):
    voyageai = pytest.importorskip("voyageai", reason="needs the package voyageai")
    client = voyageai.Client("unused", base_url=f"{url}/v1")
    answer = client.embed(TEXTS, model="fake", input_type="document")
    np.testing.assert_allclose(answer.embeddings, expected, rtol=1e-6)
    quantised = client.embed(TEXTS, model="fake", output_dtype="int8", output_dimension=8)
    assert np.shape(quantised.embeddings) == (2, 8)
    ranked = client.rerank("one", TEXTS, model="fake")
    [best] = client.rerank("one", TEXTS, model="fake", top_k=1).results
    assert {result.index for result in ranked.results} == {0, 1}
    assert (best, best.document) == (ranked.results[0], TEXTS[best.index])
    assert ranked.total_tokens > 0
