"""What do heads attend to, as numbers? Exact statistics of one layer from its queries and keys; nothing of size T² is stored."""
