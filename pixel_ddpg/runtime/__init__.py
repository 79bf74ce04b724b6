"""The same arithmetic, made fast: layers, graphs, precision, threads, memory."""
