"""Answer from a bundle: numpy, onnxruntime, faiss and pyarrow, nothing of training."""
