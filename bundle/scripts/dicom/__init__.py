"""DICOM: series of images, and masks and maps as objects that viewers overlay on them, which need the extra `dicom`."""
