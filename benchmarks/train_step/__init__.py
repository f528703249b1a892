"""The training step beside the hardware limit: rates, time by stage and kind, loss parity."""
