"""A training step on machines that are not here: does it fit, and how fast is it?

`tfusion compile` compiles the real step for a TPU topology with the TPU's own compiler,
reads the memory it plans and the program it schedules, and predicts the time of a step.
"""
