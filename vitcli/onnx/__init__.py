"""The model once more, as an ONNX graph: writer and reader."""
