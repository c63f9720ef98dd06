"""The loop, its schedule, checkpoints and memory."""
