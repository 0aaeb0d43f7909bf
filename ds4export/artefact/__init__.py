"""The exported folder: manifest, graphs, tokenizer, and where every weight lies.

Owns the format of `manifest.json`, its hashes, writing under a temporary name and the checks at opening. Refuses a
folder that is incomplete, altered or of another version, and a checkpoint that is not the one it was made from. Never
imports torch.
"""

from ds4export.artefact.manifest import GraphInfo, Manifest, TensorInfo, WeightSource
from ds4export.artefact.reader import Artefact, open_artefact_folder

__all__ = [
    "Artefact",
    "GraphInfo",
    "Manifest",
    "TensorInfo",
    "WeightSource",
    "open_artefact_folder",
]
