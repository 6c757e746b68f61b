"""The demonstration: servers for a sample study, and that as DICOM."""
