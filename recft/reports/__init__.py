"""Tables, plots and gates."""
