"""What people and rigs use: the `apf` command, and what stands behind it."""
