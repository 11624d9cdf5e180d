"""The trained model as the scorer of `pipeline.mine`."""
