"""Evidence on the exported model: accuracy, fidelity, latency, memory, and the statistics that turn it into findings."""
