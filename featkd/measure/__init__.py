"""Evidence on the exported model: accuracy, fidelity, latency, memory, and the statistics behind each finding."""
