"""A sweep over P and seeds on equal tokens: plan, launch, watch, resume, compare.

    plan -> launcher (local processes, or Ray) -> sweep (start, watch, stop) -> comparison

Runs are processes of their own; the sweep knows of them what their run directories say.
"""
