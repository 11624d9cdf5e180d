"""Starts a build or a training where it is wanted: here, on Kubernetes, Slurm, Ray or a cloud.

What is started is written down in `infra/`: templates of manifests, job scripts, and the values
that they share. This package fills them in and hands them to the platform's own client.
"""
