import mteb
import numpy as np
from mteb.models.models_protocols import EncoderProtocol

from rayembed.evaluation.builtin_tasks import TASKS, load_task
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from tests.evaluation.conftest import WordEngine


def test_the_adapter_passes_mteb_conformance():
    encoder = EngineEncoder(WordEngine(), "fake")
    assert isinstance(encoder, EncoderProtocol)
    outcome = mteb.mock_run(encoder)
    assert outcome.all_passed, outcome.to_markdown()
    assert sum(result is not None for _, result in outcome.items()) >= 20


def test_queries_get_the_instruction_and_documents_do_not(data_dir):
    engine = WordEngine()
    result = evaluate_task(EngineEncoder(engine, "fake"), load_task("DocstringRetrieval", data_dir))
    prompt = TASKS["DocstringRetrieval"].instruction
    instruction_of = {text: instruction for instruction, texts in engine.calls for text in texts}
    assert instruction_of["sort the list number 3"] == prompt
    assert instruction_of["def sort_3(): sort list number 3"] is None
    recorded = result.scores["test"][0]["rayembed"]["instructions"]
    assert recorded == {"query": prompt, "document": None, "origin": "mteb"}


def test_every_text_of_a_symmetric_task_gets_the_trained_instruction(data_dir):
    trained = {"vader-tweets": "Tell the mood", "WordSim353": "Same meaning"}
    engine = WordEngine(instructions=trained)
    encoder = EngineEncoder(engine, "fake")
    by_source = evaluate_task(encoder, load_task("VaderTweets", data_dir))
    assert {instruction for instruction, _ in engine.calls} == {"Tell the mood"}
    assert by_source.scores["test"][0]["rayembed"]["instructions"]["origin"] == "contract"
    engine.calls.clear()
    evaluate_task(encoder, load_task("WordSim353", data_dir))
    assert {instruction for instruction, _ in engine.calls} == {"Same meaning"}


def test_rows_come_back_in_input_order():
    engine = WordEngine()
    task = mteb.get_task("STSBenchmark")
    batches = [{"text": ["one", "two"]}, {"text": ["three"]}]
    vectors = EngineEncoder(engine, "fake").encode(
        batches, task_metadata=task.metadata, hf_split="test", hf_subset="default"
    )
    assert np.array_equal(vectors, engine.encode(["one", "two", "three"]).vectors)
