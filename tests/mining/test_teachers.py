import numpy as np
import pytest

from rayembed.common.errors import RequestError
from rayembed.mining.config import EndpointTeacher
from rayembed.mining.teachers import load_teacher
from tests.fake_endpoint import fake_endpoint


def test_a_service_with_limits_and_without_indices_is_a_teacher():
    asked = []

    def few_texts(path, body):
        asked.append(body)
        if len(body["input"]) > 3:
            return 422, {"error": {"message": "too many texts"}}
        if "bad" in body["input"]:
            return 400, {"error": {"message": "content filter"}}
        return 200, {"data": [{"embedding": [len(text), 1.0]} for text in body["input"]]}

    with fake_endpoint(few_texts) as url:
        settings = {"query_prompt": "{instruction}: ", "send_instruction": True, "dimensions": 2}
        teacher = load_teacher(EndpointTeacher(kind="endpoint", url=url, model="few", **settings))
        texts = ["x" * length for length in range(1, 12)]
        np.testing.assert_array_equal(
            teacher.encode(texts, "document", None), [[length, 1] for length in range(1, 12)]
        )
        [vector] = teacher.encode(["cat"], "query", "Find")
        assert vector[0] == len("Find: cat")
        assert (asked[-1]["instruction"], asked[-1]["dimensions"]) == ("Find", 2)
        with pytest.raises(RequestError, match="content filter; the text begins with 'bad'"):
            teacher.encode(["good", "bad"], "document", None)
