"""What is fast and against whom: scripts, each with a peer or a floor in the same run."""
