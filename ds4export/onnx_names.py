"""What every ONNX file of ours is called and versioned by: one place, for stages with torch and without."""

DOMAIN = "ds4"  # the ops
LAYER_DOMAIN = "ds4.layers"  # functions of half layers
OPSET = (
    21  # in the model and in every function: others are refused by the checker and by ONNX Runtime
)
IR_VERSION = 10
