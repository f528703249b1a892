"""The training step compared with the hardware limit: rates, time per stage and kind, losses."""
