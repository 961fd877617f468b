"""The endpoint for `serve run serve.app:build checkpoint=PATH` and for Serve config files.

Works from a checkout with nothing installed: the source root goes onto the path here and on every replica.
"""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.serve import Application

SOURCE_ROOT = Path(__file__).resolve().parents[1] / "platform"
INSTALLED = importlib.util.find_spec("rayembed") is not None
if not INSTALLED:
    sys.path.insert(0, str(SOURCE_ROOT))


def build(arguments: Mapping[str, Any]) -> Application:
    """Bind the endpoint; `arguments` are the fields of `rayembed.serving.config.ServeConfig`."""
    from rayembed.serving.config import ServeConfig
    from rayembed.serving.deploy import build_application

    runtime_env = None if INSTALLED else {"env_vars": {"PYTHONPATH": str(SOURCE_ROOT)}}
    return build_application(ServeConfig.parse(arguments), runtime_env=runtime_env)
