"""Training one run: `run.run(config)` is the way in, `loop.TrainingLoop` is what it drives."""
