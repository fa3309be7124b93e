"""Tasks: the decorator, the signature and arguments of a task, and one run of it."""
