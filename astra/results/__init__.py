"""Results on their way to the database: buffered, batched, and written as checkpoints."""
