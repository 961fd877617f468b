"""Masked next-token prediction: what is masked, what is predicted, and chunks."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralForCausalLM

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.data.stream import local_batches
from rayembed.losses import MNTPConfig
from rayembed.model.backbone import load_backbone
from rayembed.model.configuration import LoraSettings
from rayembed.model.lora import attach_lora
from rayembed.training.mntp import (
    MaskedLanguageModel,
    language_model_head,
    mask_batch,
    mask_id,
    masked_backward,
)
from rayembed.training.resources import StepTimer
from tests.host_waits import RefuseHostWaits
from tests.tiny import make_backbone, make_tokenizer
from tests.training.models import Unwrapped, gradients
from tests.training.sources import stage, stream_spec


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    torch.manual_seed(4)
    MistralForCausalLM(make_backbone().config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_read_alone_and_is_that_of_the_language_model(tmp_path, monkeypatch, tied):
    config = make_backbone().config
    config.tie_word_embeddings = tied
    MistralForCausalLM(config).save_pretrained(tmp_path)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path).get_output_embeddings().weight
    for loads in (AutoModelForCausalLM, MistralForCausalLM):
        monkeypatch.setattr(loads, "from_pretrained", lambda *_, **__: pytest.fail("loads a whole model"))
    assert torch.equal(language_model_head(tmp_path), wanted)


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
    _, found = masked(tmp_path, language_model)
    head = language_model_head(language_model)

    def step(budget):
        torch.manual_seed(0)
        backbone = attach_lora(load_backbone(language_model), LoraSettings(rank=2, alpha=4, dropout=0.0))
        wrapped = Unwrapped(MaskedLanguageModel(backbone, head).train())
        with RefuseHostWaits():
            output = masked_backward(wrapped, found, 2, torch.device("cpu"), StepTimer(), budget)
        return wrapped, output

    whole, plain = step(None)
    in_chunks, chunked = step(90)
    assert len(in_chunks.boundaries) > 2
    assert in_chunks.boundaries[-1] is True
    torch.testing.assert_close(chunked.loss, plain.loss)
    assert int(plain.counts_S["loss"].sum()) == len(found.token_M)
    torch.testing.assert_close(plain.sums_S["loss"].sum() / len(found.token_M), plain.loss)
    expected = gradients(whole.module)
    assert any(float(gradient.abs().sum()) > 0 for gradient in expected.values())
    for name, gradient in gradients(in_chunks.module).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_a_base_without_a_head_and_a_long_mask_are_refused(tiny_base):
    with pytest.raises(CheckpointError, match="no language-model head"):
        language_model_head(tiny_base)
    with pytest.raises(ConfigError, match="'mask' is 4 tokens"):
        mask_id(make_tokenizer(), MNTPConfig(mask_token="mask"))
