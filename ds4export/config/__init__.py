"""The model's sizes: config.json in, one frozen and validated `ModelConfig` out. First stage.

Owns the meaning and the limits of every field, its spellings (the official one, the one
`transformers` saves, the flat one of the released inference code), and strict JSON for all files
of a checkpoint. Refuses by name what announces another model.
"""

from ds4export.config.loader import config_from_json, load_config
from ds4export.config.model_config import ModelConfig, RopeScaling

__all__ = ["ModelConfig", "RopeScaling", "config_from_json", "load_config"]
