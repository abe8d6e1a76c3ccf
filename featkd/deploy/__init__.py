"""From a Hugging Face folder to the ONNX folder that is shipped, and the session that runs it."""
