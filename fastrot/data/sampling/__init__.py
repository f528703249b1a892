"""The choice of samples for each step, and of their crops, flips and turns."""
