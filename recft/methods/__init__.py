"""One file per tuning method."""
