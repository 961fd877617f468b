from rayembed.config.loading import load_config
from rayembed.data.build import declared_source
from rayembed.training.handover import trained_contract


def test_what_is_derived_from_a_source_has_its_facts():
    raw = {
        "name": "x", "base_model": "none",
        "data": {"sources": {
            "nq": {"path": "nq.jsonl", "instruction": "Find the answer", "task_type": "sts",
                   "licence": "CC0"},
            "mined": {"path": "mined.jsonl", "derived_from": "nq"},
        }},
        "stages": [{"name": "one", "steps": 1, "batch_size": 2, "learning_rate": 1.0e-3,
                    "in_batch_negatives": True, "blend": {"mined": 1}}],
    }  # fmt: skip
    config = load_config(raw)
    assert config.stages[0].blend[0].instruction == "Find the answer"
    source = declared_source(config.data, "mined")
    assert (source.task_type, source.licence) == ("sts", "CC0")
    contract = trained_contract(config)
    assert contract.instructions["nq"] == contract.instructions["mined"] == "Find the answer"
