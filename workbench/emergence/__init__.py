"""When do heads appear? A small transformer is trained, its checkpoints are kept as model folders, and each is scored."""
