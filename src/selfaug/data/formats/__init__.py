"""One file per data set format: rows in, records out."""

from selfaug.data.formats.registry import FORMATS, Format, detect, get_format

__all__ = ["FORMATS", "Format", "detect", "get_format"]
