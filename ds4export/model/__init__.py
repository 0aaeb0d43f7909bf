"""The PyTorch definition of DeepSeek-V4: reads like the paper, computes only through `ds4` ops.

Owns the order of ops, the names of weights (a module's path is the checkpoint's spelling) and the flow of state.
Refuses arithmetic of its own: what is traced here must lower to `ds4` nodes alone.
"""

import ds4export.ops  # noqa: F401  registers what `torch.ops.ds4` names
from ds4export.model.transformer import Transformer
from ds4export.model.weights import build_model

__all__ = ["Transformer", "build_model"]
