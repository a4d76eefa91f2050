"""The Trainer and its parts: objective, schedule, averages, checkpoints, kept labels."""
