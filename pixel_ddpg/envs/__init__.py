"""Tasks, pictures of them, and what an agent sees."""
