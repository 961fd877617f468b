"""An engine without a model: a vector is a function of the token ids, so that tests need no weights."""

import os
import re
import time
import zlib
from types import SimpleNamespace

import numpy as np

from rayembed.contract import Contract, TokenizedTexts
from rayembed.engine.engine import Encoded
from rayembed.serving.config import ModelSettings, ServeConfig
from rayembed.serving.deploy import build_application

POISON = "poison"
VOCABULARY = 10_000
WIDTH = 16


class WordTokenizer:
    """Splits at spaces; a word's id is a checksum. Stands for a Hugging Face tokenizer."""

    bos_token_id = cls_token_id = sep_token_id = None
    eos_token_id = 1
    all_special_ids = (1,)

    def __call__(self, text, add_special_tokens=True, **_):
        if isinstance(text, str):
            words = list(re.finditer(r"\S+", text))
            return {
                "input_ids": [self.word_id(word[0]) for word in words],
                "offset_mapping": [word.span() for word in words],
            }
        return {"input_ids": [self(each)["input_ids"] for each in text]}

    def __len__(self):
        return VOCABULARY

    def decode(self, ids, skip_special_tokens=False):
        return "</s>" if ids == [self.eos_token_id] else f"word{ids[0]}"

    @staticmethod
    def word_id(word):
        return 2 + zlib.crc32(word.encode()) % (VOCABULARY - 2)


class FakeEngine:
    """Deterministic vectors; fails on the word "poison", and records the size of every batch."""

    dimensions = WIDTH
    name = "fake"
    precision = "fp32"
    pooling = "eos"
    digest = "f" * 64

    def __init__(self, seconds_per_batch=0.0, instructions=None, max_length=8):
        self.contract = Contract(max_length=max_length, instructions=instructions or {})
        self.tokenizer = WordTokenizer()
        self.seconds_per_batch = seconds_per_batch
        self.batches = []
        self.adapters = []

    def add_adapter(self, name, folder):
        return folder.name[0] * 64

    def encode_tokens(self, tokenized: TokenizedTexts, *, dimensions=None, adapter=""):
        self.batches.append(tokenized.lengths)
        self.adapters.append(adapter)
        time.sleep(self.seconds_per_batch)
        if any(WordTokenizer.word_id(POISON) in ids for ids in tokenized.input_ids):
            raise RuntimeError("this text breaks the model")
        return np.stack([self._vector([*ids, *adapter.encode()]) for ids in tokenized.input_ids])

    def encode(self, texts, *, instruction=None, dimensions=None, show_progress=False):
        tokenized = self.contract.tokenize(self.tokenizer, texts, instruction)
        return Encoded(self.encode_tokens(tokenized), tokenized.lengths, tokenized.truncated)

    @staticmethod
    def _vector(ids):
        vector = np.random.default_rng(ids).standard_normal(WIDTH).astype(np.float32)
        return vector / np.linalg.norm(vector)


def load_fake(settings: ModelSettings) -> FakeEngine:
    return FakeEngine()


class BreakingEngine(FakeEngine):
    """Works until a text has the word "wedge", as a device after an illegal access.

    Or until a file in `folder` has the number of its process as name.
    """

    broken = False

    def __init__(self, folder=None):
        super().__init__()
        self.file = folder / str(os.getpid()) if folder else None

    def encode_tokens(self, tokenized, **options):
        self.broken |= any(WordTokenizer.word_id("wedge") in ids for ids in tokenized.input_ids)
        if self.broken or (self.file and self.file.exists()):
            raise RuntimeError("the device is lost")
        return super().encode_tokens(tokenized, **options)


def load_breaking_fake(settings: ModelSettings) -> FakeEngine:
    return BreakingEngine(settings.checkpoint_path)


def load_slow_fake(settings: ModelSettings) -> FakeEngine:
    return FakeEngine(seconds_per_batch=0.2)


def load_updated_fake(settings: ModelSettings) -> FakeEngine:
    engine = FakeEngine()
    engine.digest = "e" * 64
    return engine


def application(load, runtime_env=None, **settings):
    """The real Serve application around a fake engine."""
    config = ServeConfig.parse({"checkpoint": "unused", "model_name": "fake", "num_cpus": 0.1, **settings})
    return build_application(config, load=load, runtime_env=runtime_env)


class LocalHandle:
    """Calls an object's methods as a Ray Serve deployment handle does, in this process."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, method):
        return SimpleNamespace(remote=getattr(self._target, method))

    async def answers(self, method):
        return [await getattr(self._target, method)()]
