"""Requests to the dialects."""

import numpy as np


def vectors(client, **body):
    response = client.post("/v1/embeddings", json={"model": "fake", **body})
    return np.array([item["embedding"] for item in response.json()["data"]], dtype=np.float32)


def post(client, path, **body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response
