"""Loss functions, importance weights, mixup and cutmix."""
