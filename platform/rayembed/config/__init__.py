"""Run configuration: one YAML recipe plus dotted overrides -> one frozen, validated object."""

from rayembed.config.blend import MiningConfig, SourceConfig
from rayembed.config.data import DataConfig, UserSourceConfig
from rayembed.config.loading import load_config, load_recipe, validate_config, validate_recipe
from rayembed.config.run import EvaluationConfig, RunConfig
from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.config.validation import ValidationConfig

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "MiningConfig",
    "RunConfig",
    "SourceConfig",
    "StageConfig",
    "TrainingConfig",
    "UserSourceConfig",
    "ValidationConfig",
    "load_config",
    "load_recipe",
    "validate_config",
    "validate_recipe",
]
