"""Running models over tokens: sweeps, statistics, losses, and the driver that turns a method into a plan."""
