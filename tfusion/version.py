"""The version of tfusion; CHANGELOG.md says what it means, and which files it reads."""

__version__ = "0.2.0"
