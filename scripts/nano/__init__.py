"""The trainer of the nano checkpoint: text, model, quantisation, optimiser, export, evaluation.

Owns a differentiable float32 forward of the whole sequence, written apart from `ds4export.model` so
that the checkpoint is an independent witness for it. Refuses to be imported by the package.
"""
