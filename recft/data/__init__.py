"""Tables become checked records, split and stored."""
