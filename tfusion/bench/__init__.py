"""Speed of this machine, and of compiled programs."""
