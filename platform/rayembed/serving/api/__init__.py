"""The endpoint's HTTP interfaces: one file a dialect, with the bodies it reads, its routes and its answers.

A new dialect is a module with a function `routes` and a line here.
"""

from collections.abc import Callable

from fastapi import APIRouter

from rayembed.serving.api import cohere, openai, rerank, tei
from rayembed.serving.config import ServeConfig
from rayembed.serving.router import ModelRouter

DIALECTS: list[Callable[[ModelRouter, ServeConfig], APIRouter]] = [
    openai.routes,
    cohere.routes,
    rerank.routes,
    tei.routes,
]
