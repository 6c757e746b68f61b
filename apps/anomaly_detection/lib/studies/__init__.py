"""The studies: MONAI Label's datastores, made safe against bad names, half-written files and a DICOM server that goes away."""
