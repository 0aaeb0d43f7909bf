"""Rewrites of a captured graph, in two visible orders: `PIPELINE` and `TENSORRT_PIPELINE`.

    PIPELINE            in place on the layered graph with bodies attached: the artefact
    TENSORRT_PIPELINE   on what PIPELINE left, in memory: a flat graph of ds4 nodes without bodies

Owns the passes, one per file, and their runner. Refuses torch, files and weights: a pass sees an `onnx_ir` model and
nothing else. Every pass is described in docs/passes.md.
"""

from ds4export.passes._run import (
    Outcome,
    Pass,
    PassReport,
    Pipeline,
    Step,
    TextWatch,
    run_pass,
    run_passes,
    unmet_needs,
)
from ds4export.passes.drop_bodies import drop_bodies
from ds4export.passes.drop_identities import drop_identities
from ds4export.passes.drop_no_ops import drop_no_ops
from ds4export.passes.fold_constants import fold_constants
from ds4export.passes.fold_sizes import fold_sizes
from ds4export.passes.fuse_clips import fuse_clips
from ds4export.passes.inline_layers import inline_layers
from ds4export.passes.merge_equal_nodes import merge_equal_nodes
from ds4export.passes.merge_equal_sizes import merge_equal_sizes
from ds4export.passes.merge_views import merge_views
from ds4export.passes.pack_caches import pack_caches
from ds4export.passes.split_slices import split_slices
from ds4export.passes.state_reshape_targets import state_reshape_targets
from ds4export.passes.write_reciprocals import write_reciprocals

PIPELINE = Pipeline(
    "onnx",
    ("bodies",),
    (
        Step(fold_sizes, "widths become numbers, and every pass below compares shapes"),
        Step(write_reciprocals, "before constants fold: the reciprocal of a width is one"),
        Step(fold_constants, "factors and tables that hang on widths alone"),
        Step(drop_no_ops, "widths are numbers: a pad of whole blocks to whole blocks shows"),
        Step(state_reshape_targets, "before sizes merge: most targets then need no size at all"),
        Step(merge_views, "constant targets can be merged, computed ones cannot"),
        Step(merge_equal_sizes, "what is left of sizes hangs on B and T: ask for each once"),
        Step(merge_equal_nodes, "after sizes: what read two equal sizes is equal now"),
        Step(fuse_clips, "after merging: a bound that two nodes share is not fused"),
        Step(split_slices, "after merging: equal slices would not tile an axis"),
        Step(drop_identities, "last: the names of outputs move to their producers"),
    ),
)

TENSORRT_PIPELINE = Pipeline(
    "tensorrt",
    (),
    (
        Step(inline_layers, "TensorRT finds a plugin only for a node of the main graph"),
        Step(drop_bodies, "what is left of ds4 has to be a plugin"),
        Step(
            pack_caches,
            "if asked for: a property of the state that only plugins know",
            optional=True,
        ),
    ),
)

__all__ = [
    "PIPELINE",
    "TENSORRT_PIPELINE",
    "Outcome",
    "Pass",
    "PassReport",
    "Pipeline",
    "Step",
    "TextWatch",
    "run_pass",
    "run_passes",
    "unmet_needs",
]
