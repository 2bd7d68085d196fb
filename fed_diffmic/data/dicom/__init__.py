"""DICOM to images and a table: reading, rendering, identity, and what is checked on the way (docs/dicom.md)."""
