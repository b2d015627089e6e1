"""Answers as clinics and viewers keep them: DICOM segmentations and series, 3D Slicer segmentations, label measures."""
