"""The same algorithm, made fast: layers, graphs, precision, threads, memory."""
