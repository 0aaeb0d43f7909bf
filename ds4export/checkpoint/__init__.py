"""Weights on disk: open a checkpoint, or write a synthetic one.

Owns safetensors files, their index, the names of tensors in every dialect, and all checks at the
door. Refuses whatever is damaged, incomplete, dequantised or of another model. Never writes to a
checkpoint it opened, and never imports torch.
"""

from ds4export.checkpoint.presets import PRESETS
from ds4export.checkpoint.reader import Checkpoint, open_checkpoint
from ds4export.checkpoint.shard import ShardInfo, TensorRef
from ds4export.checkpoint.summary import CheckpointSummary, census, summarise
from ds4export.checkpoint.synth import write_synthetic
from ds4export.checkpoint.verify import UnusedTensor

__all__ = [
    "PRESETS",
    "Checkpoint",
    "CheckpointSummary",
    "ShardInfo",
    "TensorRef",
    "UnusedTensor",
    "census",
    "open_checkpoint",
    "summarise",
    "write_synthetic",
]
