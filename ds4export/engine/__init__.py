"""Engines: an artefact lowered to plugin nodes and built ahead of time by TensorRT.

    artefact -> TENSORRT_PIPELINE -> network of plugins -> plan for named GPU architectures -> engine folder

Owns the choice of the TensorRT flavour, the plugin library's identity, profiles, recipes, the plan and the manifest of
an engine folder. Refuses artefacts in float32 numerics, ops without a plugin, and folders or libraries that are not the
ones a manifest names. Weights stay outside: they are inputs of the plan. Nothing here runs an engine.
"""
