"""DICOM: series of images, and masks and maps as objects that viewers overlay on them. Needs the extra `dicom`."""
