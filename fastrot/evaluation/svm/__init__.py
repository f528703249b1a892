"""The VOC07 SVM protocols."""
