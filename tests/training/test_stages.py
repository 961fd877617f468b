"""Stages of all kinds: what they refuse, what they hand over, and masked next-token prediction."""

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralForCausalLM

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.config import validate_config
from rayembed.data.stream import local_batches
from rayembed.data.texts import text_rows
from rayembed.losses import MNTPConfig
from rayembed.model.backbone import load_backbone
from rayembed.training.checkpointing import TrainingState, write_training_state
from rayembed.training.handover import carried_weights, merge_into_base, starting_weights
from rayembed.training.masking import (
    MaskedLanguageModel,
    language_model_head,
    mask_batch,
    mask_id,
    masked_backward,
)
from rayembed.training.model import build_trainable, load_trainable_weights, trainable_weights
from rayembed.training.timing import StepTimer
from tests.tiny import make_backbone, make_tokenizer
from tests.training.models import PlainEngine, gradients
from tests.training.sources import stage, stream_spec, write_source

BLEND = [{"source": "one", "weight": 1, "in_batch_negatives": True}]
SETTINGS = {"steps": 4, "batch_size": 6, "learning_rate": 1e-2, "blend": BLEND}


def recipe(*stages, base="unused", **changes):
    numbered = [{"name": f"stage-{n}", **SETTINGS, **settings} for n, settings in enumerate(stages)]
    settings = {
        "name": "tiny",
        "base_model": str(base),
        "model": {"pooling": {"type": "latent", "num_latents": 4, "num_heads": 2, "head_width": 8}},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "stages": numbered,
    }
    return validate_config(settings | changes, origin="test")


def test_short_keys_stand_for_a_loss_and_one_loss_for_a_list():
    short = recipe({"temperature": 0.5, "document_to_query_weight": 0.3}).stages[0]
    long = recipe({"loss": {"type": "infonce", "temperature": 0.5, "document_to_query_weight": 0.3}}).stages[
        0
    ]
    assert short == long
    assert recipe({"kind": "simcse"}).stages[0].loss[0].temperature == 0.05
    assert recipe({"kind": "mntp"}).stages[0].loss == (MNTPConfig(),)


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        ([{"temperature": 0.1, "loss": {"type": "infonce"}}], {}, "temperature excludes loss"),
        (
            [{"kind": "mntp", "loss": {"type": "infonce"}}],
            {},
            "kind mntp cannot minimise infonce; it takes mntp",
        ),
        ([{"loss": [{"type": "infonce"}, {"type": "infonce"}]}], {}, "appears twice.*merge the entries"),
        ([{"kind": "mntp", "matryoshka": {"dimensions": [4]}}], {}, "makes no vectors.*remove matryoshka"),
        (
            [{"loss": {"type": "vector_distillation", "teacher": "t"}, "matryoshka": {"dimensions": [4]}}],
            {},
            "compares whole vectors",
        ),
        ([{"matryoshka": {"dimensions": [8, 8]}}], {}, "must differ"),
        ([{"matryoshka": {"dimensions": [8], "weights": [1.0, 2.0]}}], {}, "2 weights for 1 dimensions"),
        (
            [
                {
                    "blend": [{**BLEND[0], "in_batch_negatives": False}],
                    "loss": {"type": "infonce", "query_to_query": 1},
                }
            ],
            {},
            "no source has in_batch_negatives",
        ),
        (
            [{"kind": "simcse", "blend": [{**BLEND[0], "in_batch_negatives": False}]}],
            {},
            "only negatives of simcse",
        ),
        ([{"kind": "simcse", "blend": [{**BLEND[0], "instruction": "Find"}]}], {}, "set symmetric: true"),
        ([{"kind": "mntp", "blend": [{**BLEND[0], "mining": {}}]}], {}, "remove mining"),
        (
            [{"kind": "simcse"}],
            {"lora": {"dropout": 0.0}},
            "set attention_dropout of the stage or lora.dropout",
        ),
        ([{"kind": "mntp"}], {"lora": None}, "kind: mntp needs adapters and lora is null"),
        ([{}, {"adapters": "merge"}], {"lora": None}, "adapters: merge needs adapters"),
        ([{"adapters": "merge"}], {}, "is the first, no adapters come before it"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(stages, changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(*stages, **changes)


def test_texts_of_a_source_once_each(tmp_path):
    path = write_source(tmp_path / "one.arrow", rows=5)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    doubled = table.take([0, 1, 1, 2])
    rows = text_rows(doubled, "documents").to_pylist()
    assert [row["query"] for row in rows] == [
        f"about {word} number {n}" for n, word in enumerate(["sun", "rain", "snow"])
    ]
    assert all(row["positives"] == [row["query"]] and row["negatives"] == [] for row in rows)
    assert text_rows(doubled, "queries")["query"][1].as_py() == "rain 1?"


def save(folder, weights):
    folder.mkdir()
    write_training_state(folder, TrainingState("stage", 1, 1, weights, {}))
    return folder


def test_weights_carried_over_stages(tmp_path):
    config = recipe({"kind": "mntp"}, {"adapters": "merge"}, {}, {"adapters": "merge"})
    lora, pooling = "backbone.lora_A", "pooling.latents"
    folders = [
        save(tmp_path / "0", {lora: torch.tensor([1.0])}),
        save(tmp_path / "1", {pooling: torch.tensor([2.0]), lora: torch.tensor([2.0])}),
        save(tmp_path / "2", {lora: torch.tensor([3.0])}),
    ]
    assert starting_weights(config, 0, folders) == {}
    assert starting_weights(config, 1, folders) == {}
    assert {k: float(v) for k, v in starting_weights(config, 2, folders).items()} == {lora: 2.0, pooling: 2.0}
    assert {k: float(v) for k, v in starting_weights(config, 3, folders).items()} == {pooling: 2.0}
    assert {k: float(v) for k, v in carried_weights(config, folders).items()} == {lora: 3.0, pooling: 2.0}


def test_a_merged_base_computes_what_base_and_adapters_did(tmp_path, tiny_base):
    config = recipe({}, {"adapters": "merge"}, base=tiny_base)
    trained = build_trainable(config, tiny_base, torch.float32).eval()
    weights = trainable_weights(trained)
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in weights.items()}
    load_trainable_weights(trained, weights, "test")
    merged = merge_into_base(config, tiny_base, weights, tiny_base, tmp_path / "base")
    again = build_trainable(config, merged, torch.float32).eval()
    heads = {name: value for name, value in weights.items() if name.startswith("pooling.")}
    load_trainable_weights(again, trainable_weights(again) | heads, "test")
    spec = stream_spec(tmp_path, tiny_base, stage())
    [batch] = local_batches(spec, start=0, stop=1)
    torch.testing.assert_close(again(batch.packed), trained(batch.packed), atol=1e-6, rtol=1e-5)
    assert merge_into_base(config, tiny_base, {}, tiny_base, tmp_path / "base") == merged  # kept as it is


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    torch.manual_seed(4)
    MistralForCausalLM(make_backbone().config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def masked(tmp_path, base, share=0.3):
    spec = stream_spec(tmp_path, base, stage())
    [batch] = local_batches(spec, start=2, stop=3)
    return batch, mask_batch(batch, MNTPConfig(masked_share=share), mask=97, end=0, seed=17)


def test_masked_tokens_are_predicted_from_the_position_before(tmp_path, language_model):
    batch, found = masked(tmp_path, language_model)
    head = language_model_head(language_model)
    model = MaskedLanguageModel(load_backbone(language_model, attention="bidirectional"), head).eval()
    logits = model(found.packed, found.before_M)
    reference = AutoModelForCausalLM.from_pretrained(language_model)
    reference.model.config.is_causal = False
    texts = found.packed.input_ids_T.split(list(found.packed.lengths.texts))
    unmasked = batch.packed.input_ids_T.split(list(batch.packed.lengths.texts))
    expected, tokens = [], []
    for position, text in enumerate(texts):
        query = found.packed.order_N.tolist().index(position)
        original = unmasked[int(batch.packed.order_N[query])]
        places = [n for n in range(len(text)) if text[n] != original[n]]
        assert places
        assert all(text[n] == 97 for n in places)
        whole = reference(text[None]).logits[0]
        expected.append(whole[[n - 1 for n in places]])
        tokens.append(original[places])
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=1e-4)
    assert torch.equal(found.token_M, torch.cat(tokens))


def test_chunks_of_masked_texts_add_up(tmp_path, language_model):
    from rayembed.model.configuration import LoraSettings
    from rayembed.model.lora import attach_lora

    _, found = masked(tmp_path, language_model)
    head = language_model_head(language_model)

    def step(budget):
        torch.manual_seed(0)
        backbone = attach_lora(load_backbone(language_model), LoraSettings(rank=2, alpha=4, dropout=0.0))
        engine = PlainEngine(MaskedLanguageModel(backbone, head).train())
        output = masked_backward(engine, found, 2, StepTimer(), budget)
        return engine, output

    engine, plain = step(None)
    chunked_engine, chunked = step(90)
    assert len(chunked_engine.boundaries) > 2
    assert chunked_engine.boundaries[-1] is True
    torch.testing.assert_close(chunked.loss, plain.loss)
    assert int(plain.counts_S["loss"].sum()) == len(found.token_M)
    torch.testing.assert_close(plain.sums_S["loss"].sum() / len(found.token_M), plain.loss)
    expected = gradients(engine.module)
    assert any(float(gradient.abs().sum()) > 0 for gradient in expected.values())
    for name, gradient in gradients(chunked_engine.module).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_a_base_without_a_head_and_a_long_mask_are_refused(tiny_base):
    with pytest.raises(CheckpointError, match="no language-model head"):
        language_model_head(tiny_base)
    with pytest.raises(ConfigError, match="'mask' is 4 tokens"):
        mask_id(make_tokenizer(), MNTPConfig(mask_token="mask"))
