"""One file per task: record -> model input, target, loss, scores, default metrics."""
