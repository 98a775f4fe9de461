"""The processes of a run: their start, their agreement, their interruption and their end."""
