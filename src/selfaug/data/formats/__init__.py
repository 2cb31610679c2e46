"""The formats of data sets: rows in, records out."""

from selfaug.data.formats.registry import FORMATS, Format, detect, get_format, mapped

__all__ = ["FORMATS", "Format", "detect", "get_format", "mapped"]
