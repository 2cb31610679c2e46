"""The formats of data sets, which turn rows into records and conversations."""

from selfaug.data.formats.registry import FORMATS, Format, detect, get_format, mapped

__all__ = ["FORMATS", "Format", "detect", "get_format", "mapped"]
