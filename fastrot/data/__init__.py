"""Images on disk to uint8 batches on the device. Importing this package imports no torch."""
