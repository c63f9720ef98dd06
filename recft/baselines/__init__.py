"""One file per classic recommender or ranker."""
