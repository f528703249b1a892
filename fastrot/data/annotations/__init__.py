"""Annotations of dense tasks: boxes, masks and label maps of images, in their original layouts."""
