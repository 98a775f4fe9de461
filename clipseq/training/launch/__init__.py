"""The processes of a run: how they start, agree, are interrupted, and end."""
