"""Configuration: typed dataclasses, the command line made from them, files, origins, faults."""

from megacore.config.fields import FlagSpec, flag, flag_fields

__all__ = ["FlagSpec", "flag", "flag_fields"]
