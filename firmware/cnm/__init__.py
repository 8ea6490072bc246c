"""What runs on a compute node module: `cnm-init` (its management controller) and the agent."""
